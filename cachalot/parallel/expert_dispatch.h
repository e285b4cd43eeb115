// Moves rows from tokens to experts and back. With one rank it is a permutation in local memory; with expert
// parallelism the same four calls become all-to-alls, and nothing above them changes.
//   T tokens, K choices each, R = T K rows sorted by expert; counts and offsets stay on the device.
#pragma once

#include "backend/backend.h"
#include "backend/buffer.h"

namespace cachalot {

class ExpertDispatch {
 public:
  explicit ExpertDispatch(int64_t experts) : experts_(experts) {}

  struct Plan {
    Tensor row_of;   // i32 [T, K]
    Tensor offsets;  // i32 [1, E+1]
  };
  Plan plan(Stream& s, Arena& arena, Tensor indices) const;

  // x [T, D] -> rows [R, D]
  void dispatch(Stream& s, const Plan& plan, Tensor x, Tensor rows) const;
  // dx [T, D] = residual + sum over a token's rows of drows
  void dispatch_backward(Stream& s, const Plan& plan, Tensor drows, Tensor residual, Tensor dx) const;
  // y [T, D] = residual + shared + sum_j weights(t, j) rows(t, j)
  void combine(Stream& s, const Plan& plan, Tensor rows, Tensor weights, Tensor residual, Tensor shared,
               Tensor y) const;
  // A number for each choice, as the combination's weights are [T, K], to the rows [1, R]; and back.
  void dispatch_numbers(Stream& s, const Plan& plan, Tensor of_choices, Tensor of_rows) const;
  void return_numbers(Stream& s, const Plan& plan, Tensor of_rows, Tensor of_choices) const;

 private:
  int64_t experts_;
};

}  // namespace cachalot
