// From token ids on the host to a TokenBatch on the device, with one upload.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/buffer.h"
#include "tensor/token_batch.h"

namespace cachalot {

// Collects index vectors on the host, uploads them together, then hands out views.
class IndexPack {
 public:
  size_t add(std::vector<int32_t> values);  // a handle for view()
  void upload(Stream& s, Arena& arena);
  int64_t size() const { return int64_t(values_.size()); }
  Tensor view(size_t handle) const;                // i32 [1, n]
  Tensor view(size_t handle, int64_t rows) const;  // i32 [rows, n / rows]

 private:
  std::vector<int32_t> values_;
  std::vector<int64_t> first_{0};
  Tensor device_;
};

// The rows of one MTP depth: position i of depth k sees token i + k and predicts token i + k + 1, so each
// depth has one row a sequence less than the one before.
struct MtpBatch {
  TokenBatch batch;
  Tensor previous_rows;  // i32 [1, T_k]: this depth's rows among the previous depth's
  Tensor next_rows;      // i32 [1, T_(k-1)]: the inverse, -1 for a row that has no successor
};

struct TrainingBatch {
  TokenBatch main;
  std::vector<MtpBatch> mtp;  // depth 1, 2, ...
};

// Each sequence holds n + 1 tokens: n inputs and the target of the last. n must exceed `depths`.
TrainingBatch make_training_batch(Stream& s, Arena& arena,
                                  std::span<const std::span<const int32_t>> sequences, int64_t depths);

}  // namespace cachalot
