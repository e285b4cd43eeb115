// Which tokens of a stream make up the n-th training row: a pure function of (seed, n), so that a resumed run,
// or another rank, draws the same without keeping any state. Two ways to cut rows (V3 report, section 4.1:
// documents are packed, and attention is not masked at their ends):
//
//   concatenate  the stream is cut every T tokens, wherever documents end:
//                row k = tokens [offset + k T, offset + k T + T],  T + 1 tokens: T inputs and, shifted by
//                one, T targets. Neighbours share one token, so every target is predicted once. The next
//                epoch has another offset, so that the cuts move.
//   best_fit     whole documents share a row, and only one longer than T + 1 tokens is cut (data/packing.h).
//                Every token is in one row of an epoch; rows are a little shorter than T + 1 at times.
//
// The rows of an epoch come in random order, each once; the next epoch has another order.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/packing.h"
#include "data/token_stream.h"

namespace cachalot {

enum class Packing : uint8_t { concatenate, best_fit };

class RowSampler {
 public:
  // Error when the stream holds no row. seq_len: T; MTP takes its targets from the same T + 1 tokens, so that
  // it needs rows of some length: `shortest`, for best_fit.
  RowSampler(const TokenStream& stream, int64_t seq_len, Packing packing, uint64_t seed,
             int64_t shortest = 2);

  int64_t rows_per_epoch() const { return rows_; }
  // Row n, n = 0, 1, ... without end, as ranges of the stream's tokens: one, or with best_fit several.
  std::span<const TokenRange> row(int64_t n, TokenRange& storage) const;
  double fill() const;  // tokens of all rows over (T + 1) a row

 private:
  int64_t seq_len_;
  uint64_t seed_;
  int64_t rows_ = 0;
  int64_t offsets_ = 1;  // concatenate: an epoch's offset is drawn from [0, offsets_)
  PackedRows packed_;    // best_fit
  bool best_fit_;
};

}  // namespace cachalot
