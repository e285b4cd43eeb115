#include "backend/cpu/vector.h"

#include <string>

namespace cachalot::cpu {

const Vectors& vectors_for(const char* isa) {
#if defined(__x86_64__)
  const std::string name = isa;
  if (name == "avx2") return vectors_avx2;
  if (name == "avx512_bf16") return vectors_avx512_bf16;
  if (name == "sse2") return vectors_sse2;
  // avx512 and amx; and amx_emulated, which runs anywhere: the best that is here.
  if (__builtin_cpu_supports("avx512f")) return vectors_avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return vectors_avx2;
#else
  (void)isa;
#endif
  return vectors_sse2;
}

}  // namespace cachalot::cpu
