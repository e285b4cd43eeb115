#include "train/schedule.h"

#include <cmath>

#include "base/error.h"

namespace cachalot {

double Schedule::at(int64_t step) const {
  CHECK(step >= 1 && warmup_steps >= 0 && total_steps >= 1);
  if (step <= warmup_steps) return lr * double(step) / double(warmup_steps);
  if (step >= total_steps) return min_lr;
  const double progress = double(step - warmup_steps) / double(total_steps - warmup_steps);
  return min_lr + (lr - min_lr) * 0.5 * (1 + std::cos(3.14159265358979323846 * progress));
}

}  // namespace cachalot
