#include "backend/cuda/hopper/fp8_tiles.h"

#include <algorithm>

#include "base/error.h"

namespace cachalot::cuda::hopper {

namespace {

int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks that run at a time. Clusters stay inside a group of 16 or 18 multiprocessors: of three blocks, fewer
// than 40 fit on 132, of four 30 (two blocks each: 62), of eight 15.
int64_t room(const Fp8Kernel& k, int multiprocessors) {
  const int64_t blocks = int64_t(multiprocessors) * k.blocks_per_sm;
  return k.cluster() <= 2 ? blocks : k.cluster() == 3 ? blocks * 58 / 66 : blocks * 62 / 66;
}

}  // namespace

double predicted_time(const Fp8Choice& choice, const Fp8Shape& s, int multiprocessors) {
  constexpr double kBytesPerMicrosecond = 4.1e6, kLatency = 2.5;
  constexpr double kMultiprocessorsForAllBandwidth = 92, kSmallTiles = 1.05e9,
                   kLargeTiles = 1.4e9;  // FLOP/us
  const Fp8Kernel& k = choice.kernel;
  const int64_t unit_m = k.tile_m() * k.share_m, unit_n = k.tile_n() * k.share_n;
  // Rows of experts end anywhere: of the last unit of each, half is empty.
  const int64_t units_m =
      k.ragged == Ragged::rows ? up(s.experts * (2 * s.m + unit_m), 2 * unit_m) : s.experts * up(s.m, unit_m);
  const int64_t tiles = units_m * k.share_m * up(s.n, unit_n) * k.share_n, blocks = tiles * k.splits;
  const int64_t stages = up(up(s.k, kDepth), k.splits);
  const double waves = double(up(up(blocks, k.cluster()), room(k, multiprocessors) / k.cluster()));
  // Small tiles reload too much to keep the tensor cores fed when all of them are busy.
  const double products = 2.0 * double(tiles * k.tile_m() * k.tile_n()) * double(stages * k.splits * kDepth);
  const double rate = k.tile_m() * k.tile_n() >= 128 * 176 ? kLargeTiles : kSmallTiles;
  const double computing =
      choice.start + std::max(waves * (double(stages) * choice.stage + choice.tile), products / rate);
  // Memory: some multiprocessors have a block more than others; few of them cannot ask for all there is.
  const double bytes = double(s.experts) * (double(s.m * s.k + s.n * s.k) + 2.0 * double(s.m * s.n));
  const double uneven = blocks >= multiprocessors
                            ? double(up(blocks, multiprocessors) * multiprocessors) / double(blocks)
                            : std::max(1.0, kMultiprocessorsForAllBandwidth / double(blocks));
  const double moving = bytes / kBytesPerMicrosecond * uneven + kLatency;
  return std::max(computing, moving) +
         1e-3 * std::min(computing, moving);  // of equals, the one with more slack
}

int choose(std::span<const Fp8Choice> choices, const Fp8Shape& shape, int multiprocessors) {
  CHECK(!choices.empty());
  int best = 0;
  double least = 0;
  for (int i = 0; i < int(choices.size()); ++i) {
    const double time = predicted_time(choices[size_t(i)], shape, multiprocessors);
    if (i == 0 || time < least) best = i, least = time;
  }
  return best;
}

}  // namespace cachalot::cuda::hopper
