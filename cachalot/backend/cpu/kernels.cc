#include "backend/cpu/kernels.h"

#include <cstdlib>
#include <string>

#include "base/error.h"

namespace cachalot::cpu {

const Kernels& choose_kernels() {
  struct Known {
    const Kernels* kernels;
    bool supported;
  };
#if defined(__x86_64__)
  // Best first.
  const Known known[] = {{&kernels_avx512, bool(__builtin_cpu_supports("avx512f"))},
                         {&kernels_avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
                         {&kernels_sse2, true}};
#else
  const Known known[] = {{&kernels_sse2, true}};
#endif
  const char* asked = std::getenv("CACHALOT_ISA");
  std::string have;
  for (const auto& [kernels, supported] : known) {
    if (!supported) continue;
    if (!asked || !*asked || std::string(asked) == kernels->isa) return *kernels;
    have += (have.empty() ? "" : ", ") + std::string(kernels->isa);
  }
  throw Error("CACHALOT_ISA is \"" + std::string(asked) + "\"; this machine runs " + have)
      .hint("unset CACHALOT_ISA to take the best");
}

}  // namespace cachalot::cpu
