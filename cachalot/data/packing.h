// Best-fit packing: Ding et al., "Fewer truncations improve language modeling", arXiv:2404.10830, which
// DeepSeek-V3 follows (report section 4.1). Documents stay whole where they can:
//
//   1. a document longer than a row is cut into full rows and a rest;
//   2. the pieces, longest first, each go into the row with the least room that still holds it (best-fit
//      decreasing).
//
// O(n) for n pieces, with a bitmap over the possible amounts of room. Each shard is packed by itself, so the
// rows of a shard depend on it alone. Memory: 16 bytes a piece, and 8 a row.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/token_stream.h"

namespace cachalot {

struct TokenRange {
  int64_t first = 0, count = 0;
  bool operator==(const TokenRange&) const = default;
};

// Rows as lists of ranges of a stream's tokens, in one piece of memory.
class PackedRows {
 public:
  int64_t rows() const { return int64_t(first_.size()) - 1; }
  int64_t tokens() const { return tokens_; }
  std::span<const TokenRange> row(int64_t i) const {
    return std::span(pieces_).subspan(size_t(first_[size_t(i)]),
                                      size_t(first_[size_t(i) + 1] - first_[size_t(i)]));
  }
  void append(std::span<const std::vector<TokenRange>> rows);

 private:
  std::vector<TokenRange> pieces_;
  std::vector<int64_t> first_{0};  // by row, in pieces_; one more at the end
  int64_t tokens_ = 0;
};

// Packs `documents` (ranges in order, none empty) into rows of at most `capacity` tokens. Every token is in
// exactly one row; in a row, pieces stand in the order of the stream.
std::vector<std::vector<TokenRange>> pack_best_fit(std::span<const TokenRange> documents, int64_t capacity);
// The same of every shard of a stream; rows shorter than `shortest`, which would predict too little, are left
// out: the last of a shard, if any.
PackedRows pack_best_fit(const TokenStream& stream, int64_t capacity, int64_t shortest);

// The documents of a row, cut after every end-of-text token: what a mask must keep apart. Text cannot spell
// that token, so this needs no list of where documents begin.
std::vector<std::span<const int32_t>> split_documents(std::span<const int32_t> row, int32_t end_of_text);

}  // namespace cachalot
