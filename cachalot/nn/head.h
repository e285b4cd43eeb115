// Output head and cross-entropy in one, a chunk of rows at a time: logits of all tokens ([T, 129280] in V3)
// never exist.
//   x, dx [T, D] act; W, dW [V, D]; targets i32 [1, T], -1: none;
//     losses [1, T] stat: -log p(target), 0 where none
#pragma once

#include "backend/buffer.h"
#include "nn/linear.h"
#include "nn/recipe.h"

namespace cachalot {

struct Head {
  Linear linear;
  Recipe recipe;
  // Rows of logits, and of gradients of logits, in memory at a time; 0: what head.cc finds.
  int64_t chunk_rows = 0, gradient_rows = 0;

  void logits(Stream& s, Tensor x, Tensor y) const { linear.forward(s, x, y); }  // y [T, V] stat
  void losses(Stream& s, Arena& arena, Tensor x, Tensor targets, Tensor losses) const;
  // Losses and gradients of scale * sum(losses) in one pass: the loss is the end of the forward and the start
  // of the backward, so computing both from one set of logits saves the fourth head product. dx = ; dW = or
  // += .
  void losses_and_gradients(Stream& s, Arena& arena, Tensor x, Tensor targets, double scale, Tensor losses,
                            Tensor dx, Accumulate mode) const;
};

}  // namespace cachalot
