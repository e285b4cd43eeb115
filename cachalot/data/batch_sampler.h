// Which windows of a token stream make up training step s: a pure function of (seed, step), so that a resumed
// run, or another rank, draws the same without keeping any state.
//
// An epoch cuts the stream into W windows of T targets each:
//   window k = tokens [offset + k T, offset + k T + T],  T + 1 tokens: T inputs and, shifted by one, T
//   targets
// Neighbours share one token, so every target is predicted once. The windows come in random order, each once
// (without replacement); the next epoch has another order and another offset, so that the cuts move.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace cachalot {

struct BatchSamplerOptions {
  int64_t tokens = 0;      // length of the stream
  int64_t seq_len = 0;     // T: targets a row; MTP takes its targets from the same T + 1 tokens
  int64_t batch_rows = 0;  // rows of a step
  uint64_t seed = 0;
};

class BatchSampler {
 public:
  explicit BatchSampler(BatchSamplerOptions options);  // Error when the stream is shorter than a window

  int64_t windows_per_epoch() const { return windows_; }
  // Where row `row` of step `step` begins in the stream; steps count from 0.
  int64_t start(int64_t step, int64_t row) const;
  // The rows of step `step`, T + 1 tokens each, as views into `stream`, which has the length given in the
  // options.
  std::vector<std::span<const int32_t>> rows(std::span<const int32_t> stream, int64_t step) const;

 private:
  BatchSamplerOptions options_;
  int64_t windows_ = 0;  // W
  int64_t offsets_ = 1;  // an epoch's offset is drawn from [0, offsets_)
};

}  // namespace cachalot
