// Contract: backend/ops/gemm.h. Order of summation: product.cc.
#include "backend/cpu/convert.h"
#include "backend/cpu/product.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

void CpuBackend::gemm(const Gemm& g) {
  check(g);
  require_no_f64("gemm", {&g.a, &g.b, &g.c});
  products_.assign(1, g);
  run_products(*context_, products_);
}

}  // namespace cachalot::cpu
