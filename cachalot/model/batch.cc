#include "model/batch.h"

#include <fmt/format.h>

namespace cachalot {

size_t IndexPack::add(std::vector<int32_t> values) {
  values_.insert(values_.end(), values.begin(), values.end());
  first_.push_back(int64_t(values_.size()));
  return first_.size() - 2;
}

void IndexPack::upload(Stream& s, Arena& arena) {
  device_ = arena.take_vector(DType::i32, int64_t(values_.size()));
  if (!values_.empty()) on(s).upload(values_.data(), device_);
}

Tensor IndexPack::view(size_t handle) const { return view(handle, 1); }

Tensor IndexPack::view(size_t handle, int64_t rows) const {
  CHECK(device_ && handle + 1 < first_.size());
  const int64_t n = first_[handle + 1] - first_[handle];
  CHECK(n % rows == 0);
  return make_tensor(static_cast<int32_t*>(device_.data) + first_[handle], DType::i32, rows, n / rows);
}

TrainingBatch make_training_batch(Stream& s, Arena& arena,
                                  std::span<const std::span<const int32_t>> sequences, int64_t depths) {
  struct Handles {
    size_t tokens, positions, starts, targets, previous, next;
    int64_t rows;
  };
  IndexPack pack;
  std::vector<Handles> handles;
  for (int64_t k = 0; k <= depths; ++k) {  // k = 0: the main model
    std::vector<int32_t> tokens, positions, starts{0}, targets, previous, next;
    for (size_t q = 0; q < sequences.size(); ++q) {
      const auto& t = sequences[q];
      const int64_t n = int64_t(t.size()) - 1 - k;
      CHECK(n >= 1, fmt::format("a sequence of {} tokens is too short for MTP depth {}", t.size(), k));
      // Rows of depth k - 1 of this sequence start k-1 rows a sequence later than its inputs would.
      const int32_t previous_start = int32_t(starts.back() + int64_t(q));
      for (int64_t i = 0; i < n; ++i) {
        tokens.push_back(t[i + k]);
        positions.push_back(int32_t(i));
        targets.push_back(t[i + k + 1]);
        previous.push_back(previous_start + int32_t(i));
        next.push_back(starts.back() + int32_t(i));
      }
      next.push_back(-1);
      starts.push_back(starts.back() + int32_t(n));
    }
    Handles h{.tokens = pack.add(tokens),
              .positions = pack.add(positions),
              .starts = pack.add(starts),
              .targets = pack.add(targets),
              .previous = 0,
              .next = 0,
              .rows = int64_t(tokens.size())};
    if (k > 0) {
      h.previous = pack.add(previous);
      h.next = pack.add(next);
    }
    handles.push_back(h);
  }
  pack.upload(s, arena);
  const auto batch = [&](const Handles& h) {
    return TokenBatch{.rows = h.rows,
                      .sequences = int64_t(sequences.size()),
                      .tokens = pack.view(h.tokens),
                      .positions = pack.view(h.positions),
                      .starts = pack.view(h.starts),
                      .targets = pack.view(h.targets),
                      .attend = Attend::self,
                      .slots = {},
                      .key_rows = 0,
                      .key_slots = {},
                      .key_starts = {},
                      .page_size = 0,
                      .page_table = {},
                      .kv_lens = {}};
  };
  TrainingBatch result{.main = batch(handles[0]), .mtp = {}};
  for (int64_t k = 1; k <= depths; ++k)
    result.mtp.push_back({.batch = batch(handles[k]),
                          .previous_rows = pack.view(handles[k].previous),
                          .next_rows = pack.view(handles[k].next)});
  return result;
}

}  // namespace cachalot
