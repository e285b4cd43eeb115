#include "backend/cpu/kernels.h"

#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

#include "base/cpu.h"
#include "base/error.h"

namespace cachalot::cpu {

namespace {

// A 5 x 7 product of small whole numbers, whose sums are exact in any order; wide and few alike.
bool multiplies_right(const Arithmetic& with) {
  constexpr int64_t kM = 5, kN = 7, kK = 37, kLd = 256;
  const auto a = [](int64_t i, int64_t p) { return float((3 * i + p) % 9 - 4); };
  const auto b = [](int64_t p, int64_t j) { return float((2 * j + 5 * p) % 7 - 3); };
  std::vector<float> left(kM * kK), right(kN * kK);
  std::vector<uint16_t> left_halves(kM * kK), right_halves(kN * kK);
  const auto half = [](float x) { return uint16_t(__builtin_bit_cast(uint32_t, x) >> 16); };
  for (int64_t p = 0; p < kK; ++p) {
    for (int64_t i = 0; i < kM; ++i)
      left_halves[size_t(i * kK + p)] = half(left[size_t(i * kK + p)] = a(i, p));
    for (int64_t j = 0; j < kN; ++j)
      right_halves[size_t(j * kK + p)] = half(right[size_t(j * kK + p)] = b(p, j));
  }
  const bool floats = with.number == Format::f32;
  const Source x{.data = floats ? static_cast<const void*>(left.data()) : left_halves.data(), .ld = kK},
      w{.data = floats ? static_cast<const void*>(right.data()) : right_halves.data(), .ld = kK};
  const int64_t words = with.words(kK);
  std::vector<uint32_t> left_panels(size_t(words * kLd)), right_panels(size_t(words * kLd));
  std::vector<float> c(64 * kLd);
  const auto right_sums = [&] {
    for (int64_t i = 0; i < kM; ++i)
      for (int64_t j = 0; j < kN; ++j) {
        float sum = 0;
        for (int64_t p = 0; p < kK; ++p) sum += a(i, p) * b(p, j);
        if (c[size_t(i * kLd + j)] != sum) return false;
      }
    return true;
  };
  with.pack_left(x, kM, kK, left_panels.data());
  with.pack_right(w, kN, kK, right_panels.data());
  with.multiply(left_panels.data(), right_panels.data(), kM, kN, words, {.c = c.data(), .ldc = kLd});
  if (!right_sums()) return false;
  c.assign(c.size(), 0);
  with.pack_few(x, kM, kK, left_panels.data());
  with.multiply_few({.x = left_panels.data(),
                     .rows = kM,
                     .cols = kN,
                     .k = kK,
                     .format = with.number,
                     .weights = w,
                     .sums = {.c = c.data(), .ldc = kLd}});
  return right_sums();
}

sigjmp_buf after_illegal_instruction;
extern "C" void on_illegal_instruction(int) { siglongjmp(after_illegal_instruction, 1); }

// Features that a processor reports have been seen to trap (virtual machines that hide a part of them).
bool passes_self_test(const Kernels& kernels) {
  struct sigaction trap{}, before{};
  trap.sa_handler = on_illegal_instruction;
  sigemptyset(&trap.sa_mask);
  sigaction(SIGILL, &trap, &before);
  volatile bool passed = false;
  if (sigsetjmp(after_illegal_instruction, 1) == 0)
    passed = multiplies_right(*kernels.floats) && (!kernels.halves || multiplies_right(*kernels.halves));
  sigaction(SIGILL, &before, nullptr);
  return passed;
}

struct Choices {
  KernelChoice list[kKernelChoices];

  Choices() {
    int n = 0;
    bool found = false;  // the best
    // `by_itself`: the fastest where it runs.
    const auto add = [&](const Kernels* kernels, const char* isa, bool has, bool by_itself,
                         const char* missing, const char* why_not) {
      KernelChoice c{.kernels = kernels, .isa = isa};
      if (!kernels || !has) c.why = missing;
      else if (!passes_self_test(*kernels)) c.why = "reported, but a product on it traps or is wrong";
      else {
        c.runs = true;
        c.chosen = by_itself && !found;
        c.why = c.chosen    ? "the fastest that runs here"
                : by_itself ? "runs here; a faster one is chosen"
                            : why_not;
        found = found || c.chosen;
      }
      list[n++] = c;
    };
#if defined(__x86_64__)
    const CpuFeatures f = cpu_features();
    const bool amd = cpu_vendor() == "AuthenticAMD" || cpu_vendor() == "HygonGenuine";
    const bool avx512 = f.avx512f && f.avx512bw && f.avx2 && f.fma,
               halves = avx512 && f.avx512_bf16 && f.avx512_vbmi;
    const bool amx = halves && f.amx_bf16;
    add(&kernels_amx, "amx", amx && request_tiles(), true,
        amx ? "the kernel refuses this process the tile registers" : "needs amx_bf16, avx512_bf16 and vbmi",
        "");
    add(&kernels_avx512_bf16, "avx512_bf16", halves, amd, "needs avx512_bf16 and avx512_vbmi",
        "runs here, but this maker's bf16 dot product is slower than multiply-adds of floats");
    add(&kernels_avx512, "avx512", avx512, true, "needs avx512f and avx512bw", "");
    add(&kernels_avx2, "avx2", f.avx2 && f.fma, true, "needs avx2 and fma", "");
#else
    for (const char* isa : {"amx", "avx512_bf16", "avx512", "avx2"})
      add(nullptr, isa, false, false, "of x86-64 only", "");
#endif
    add(&kernels_sse2, kernels_sse2.isa, true, true, "never missing", "");
    add(&kernels_amx_emulated, kernels_amx_emulated.isa, true, false, "",
        "for tests: the loops of amx with tiles in memory");
  }
};

}  // namespace

const KernelChoice* kernel_choices() {
  static const Choices choices;
  return choices.list;
}

const Kernels& choose_kernels() {
  const char* asked = std::getenv("CACHALOT_ISA");
  std::string have, why;
  for (int i = 0; i < kKernelChoices; ++i) {
    const KernelChoice& c = kernel_choices()[i];
    const bool named = asked && std::string(asked) == c.isa;
    if (c.runs && (asked && *asked ? named : c.chosen)) return *c.kernels;
    if (c.runs && c.kernels != &kernels_amx_emulated) have += (have.empty() ? "" : ", ") + std::string(c.isa);
    if (named) why = std::string(", and it ") + c.why;
  }
  throw Error("CACHALOT_ISA is \"" + std::string(asked) + "\"" + why + "; this machine runs " + have)
      .hint("unset CACHALOT_ISA to take the best");
}

}  // namespace cachalot::cpu
