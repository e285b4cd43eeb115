// At which contexts training data look needles up (tasks/needle.h). A claim like "finds them at 2048 tokens
// without having been trained there" rests on it, so it is counted in the shards' own tokens.
//
// A document looks a number up where it says it again: a sentence "The secret number of KEY is NUMBER." whose
// key stood in such a sentence before, asked for or not. The context of a lookup: the document's tokens, from
// the first one up to the end of the number.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "data/token_stream.h"
#include "data/tokenizer.h"

namespace cachalot {

// Of every lookup of a document, in order.
std::vector<int64_t> lookup_contexts(const Tokenizer& tokenizer, std::span<const int32_t> document);

// Is a context within `margin`, a share of the length, of a tested length?
bool is_near(int64_t context, int64_t length, double margin);

struct NeedleCensus {
  struct Part {
    std::string name;
    int64_t documents = 0, lookups = 0;
    int64_t shortest = 0, longest = 0;  // contexts of lookups; 0 without any
    std::vector<int64_t> near;          // lookups near each tested length
  };
  std::vector<Part> parts;
  int64_t near() const;  // lookups near any
};

// Error: what a damaged shard throws.
NeedleCensus take_needle_census(std::span<const TokenStream> parts, const Tokenizer& tokenizer,
                                std::span<const int64_t> lengths, double margin);

}  // namespace cachalot
