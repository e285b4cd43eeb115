// Contract: backend/ops/grouped_gemm.h. One product an expert, all tiles of all experts in one parallel loop;
// the offsets are read when the operation runs. Order of summation: product.cc.
#include "backend/cpu/convert.h"
#include "backend/cpu/product.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

namespace {

// Offsets come from device memory: a wrong one must not become a wild read.
Vector<const int32_t> checked_offsets(const char* op, const Tensor& offsets, int64_t experts, int64_t rows) {
  const auto o = offsets.vector<const int32_t>();
  CHECK(o[0] == 0, std::string(op) + ": offsets begin at " + std::to_string(o[0]));
  for (int64_t e = 0; e < experts; ++e)
    CHECK(o[e] <= o[e + 1] && o[e + 1] <= rows,
          std::string(op) + ": offsets of expert " + std::to_string(e) + " are " + std::to_string(o[e]) +
              " to " + std::to_string(o[e + 1]) + " of " + std::to_string(rows) + " rows");
  return o;
}

}  // namespace

void CpuBackend::grouped_gemm(const GroupedGemm& g) {
  check(g);
  require_no_f64("grouped_gemm", {&g.x, &g.w, &g.y});
  const auto offsets = checked_offsets("grouped_gemm", g.offsets, g.experts, g.x.rows);
  const int64_t out = g.w.rows / g.experts;
  products_.clear();
  for (int64_t e = 0; e < g.experts; ++e) {
    const int64_t first = offsets[e], rows = offsets[e + 1] - first;
    if (rows == 0) continue;
    products_.push_back({.a = g.x.slice_rows(first, rows),
                         .b = g.w.slice_rows(e * out, out),
                         .c = g.y.slice_rows(first, rows),
                         .trans_b = !g.input_grad});
  }
  run_products(*context_, products_);
}

void CpuBackend::grouped_weight_grad(const GroupedWeightGrad& g) {
  check(g);
  require_no_f64("grouped_weight_grad", {&g.dy, &g.x, &g.dw});
  const bool transposed = g.dy.dtype == DType::e4m3;
  const auto offsets =
      checked_offsets("grouped_weight_grad", g.offsets, g.experts, transposed ? g.x.cols : g.x.rows);
  const int64_t out = transposed ? g.dy.rows : g.dy.cols;
  products_.clear();
  for (int64_t e = 0; e < g.experts; ++e) {
    const int64_t first = offsets[e], rows = offsets[e + 1] - first;
    if (rows == 0 && g.accumulate == Accumulate::add) continue;
    products_.push_back({.a = transposed ? g.dy.slice_cols(first, rows) : g.dy.slice_rows(first, rows),
                         .b = transposed ? g.x.slice_cols(first, rows) : g.x.slice_rows(first, rows),
                         .c = g.dw.slice_rows(e * out, out),
                         .trans_a = !transposed,
                         .trans_b = transposed,
                         .accumulate = g.accumulate});
  }
  run_products(*context_, products_);
}

}  // namespace cachalot::cpu
