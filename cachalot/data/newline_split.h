// Random splitting of tokens that join punctuation and line ends (V3 report, section 4.1): the vocabulary has
// tokens such as ".\n\n" and ");\n", so a prompt that ends in "." is not how training text looked (token
// boundary bias, Lundberg 2023). In training a share of these tokens is therefore split in two: what stands
// before the line ends, and the line ends. The report does not give the share; 0.1 is a sensible one.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "data/tokenizer.h"

namespace cachalot {

class NewlineSplitter {
 public:
  // A token can be split if its bytes are an optional space, punctuation or symbols, then CR and LF; what it
  // is split into are the tokens of what stands before the line ends (mostly one) and of the line ends.
  explicit NewlineSplitter(const Tokenizer& tokenizer);

  int64_t tokens() const { return int64_t(parts_.size()); }  // that can be split
  // Splits each such token of `ids` with probability `rate`: which ones is a pure function of the seed and
  // `document`, which identifies it.
  void split(std::vector<int32_t>& ids, double rate, uint64_t seed, uint64_t document) const;

 private:
  bool can_split(int32_t id) const { return splits_[size_t(id) >> 6] >> (id & 63) & 1; }
  std::vector<uint64_t> splits_;  // a bit an id: 16 KB, asked for every token of a text
  std::unordered_map<int32_t, std::vector<int32_t>> parts_;  // by id
};

}  // namespace cachalot
