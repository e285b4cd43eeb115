#include "parallel/expert_dispatch.h"

namespace cachalot {

ExpertDispatch::Plan ExpertDispatch::plan(Stream& s, Arena& arena, Tensor indices) const {
  Plan plan{.row_of = arena.take(DType::i32, indices.rows, indices.cols),
            .offsets = arena.take_vector(DType::i32, experts_ + 1)};
  on(s).permute_plan(
      {.indices = indices, .row_of = plan.row_of, .offsets = plan.offsets, .experts = experts_});
  return plan;
}

void ExpertDispatch::dispatch(Stream& s, const Plan& plan, Tensor x, Tensor rows) const {
  on(s).permute({.x = x, .row_of = plan.row_of, .y = rows});
}

void ExpertDispatch::dispatch_backward(Stream& s, const Plan& plan, Tensor drows, Tensor residual,
                                       Tensor dx) const {
  on(s).unpermute(
      {.x = drows, .row_of = plan.row_of, .weights = {}, .residual = residual, .shared = {}, .y = dx});
}

void ExpertDispatch::combine(Stream& s, const Plan& plan, Tensor rows, Tensor weights, Tensor residual,
                             Tensor shared, Tensor y) const {
  on(s).unpermute(
      {.x = rows, .row_of = plan.row_of, .weights = weights, .residual = residual, .shared = shared, .y = y});
}

namespace {

Tensor column(const Tensor& t) { return make_tensor(t.data, t.dtype, t.size(), 1); }
Tensor flat(const Tensor& indices) { return make_tensor(indices.data, indices.dtype, 1, indices.size()); }

}  // namespace

void ExpertDispatch::dispatch_numbers(Stream& s, const Plan& plan, Tensor of_choices, Tensor of_rows) const {
  on(s).scatter_rows({.x = column(of_choices), .rows = flat(plan.row_of), .y = column(of_rows)});
}

void ExpertDispatch::return_numbers(Stream& s, const Plan& plan, Tensor of_rows, Tensor of_choices) const {
  on(s).gather_rows({.x = column(of_rows), .rows = flat(plan.row_of), .y = column(of_choices)});
}

}  // namespace cachalot
