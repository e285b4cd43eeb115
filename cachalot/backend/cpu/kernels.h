// The arithmetic that is worth an instruction set: small float kernels, built from one source (kernels.inc)
// once for each (kernels_sse2.cc, _avx2.cc, _avx512.cc) and chosen when the device opens. Everything else of
// this folder is built for the oldest machine.
//
// Files built with -mavx512f see this header: it may instantiate no function that other files share.
#pragma once

#include <cstdint>

namespace cachalot::cpu {

// A panel of width w holds k columns of w numbers, column after column: the layout that `multiply` reads. The
// left operand is cut into panels of mr rows, the right one into panels of nr columns; what is missing is
// zero.
struct Kernels {
  const char* isa = "";
  int64_t mr = 0, nr = 0;

  // c[i][j] (= or, with add, +=) sum_p left(i, p) right(p, j),  i < m, j < n rounded up to nr, p < k
  //   left: panels [ceil(m / mr)][k][mr] | right: panels [ceil(n / nr)][k][nr] | c [m, ldc >= n rounded up]
  // Each number of c is one chain of multiply-adds in the order of p, whatever m and n are.
  void (*multiply)(const float* left, const float* right, int64_t m, int64_t n, int64_t k, float* c,
                   int64_t ldc, bool add);

  // Panels from rows that lie along p: out[panel][p][i] = rows[(panel w + i) ld + p], p < k, i < count in
  // all.
  void (*pack_along)(const float* rows, int64_t ld, int64_t count, int64_t k, int64_t w, float* out);
  // Panels from rows that lie across: out[panel][p][i] = rows[p ld + panel w + i].
  void (*pack_across)(const float* rows, int64_t ld, int64_t count, int64_t k, int64_t w, float* out);

  // The largest of x and `floor`; NaN counts as none.
  float (*largest)(const float* x, int64_t n, float floor);

  // y[i] = exp(x[i] - shift), returns the sum of y; y may be x. Below 2 ulp; results under 2e-38 become 0,
  // over the largest float infinity, NaN stays NaN.
  float (*exp_shifted)(const float* x, float shift, int64_t n, float* y);
};

extern const Kernels kernels_sse2;  // whatever every machine has; on other processors than x86 the only one
extern const Kernels kernels_avx2, kernels_avx512;

// The best of this machine, or what CACHALOT_ISA asks for.
const Kernels& choose_kernels();

}  // namespace cachalot::cpu
