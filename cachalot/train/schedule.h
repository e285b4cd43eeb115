// The learning rate of a step: linear warm-up, then a cosine down to the smallest rate (V3 report section 4.2
// without its plateau; Loshchilov & Hutter, arXiv:1608.03983, for the cosine).
#pragma once

#include <cstdint>

namespace cachalot {

struct Schedule {
  double lr = 0, min_lr = 0;
  int64_t warmup_steps = 0, total_steps = 1;

  //   step <= warmup:  lr step / warmup
  //   else             min_lr + (lr - min_lr) (1 + cos(pi (step - warmup) / (total - warmup))) / 2
  // `step` is 1 for the first: the rate is never 0 at the start, lr at the end of the warm-up, min_lr at the
  // last step and after it.
  double at(int64_t step) const;
};

}  // namespace cachalot
