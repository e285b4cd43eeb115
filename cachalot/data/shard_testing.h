// For tests: streams of known tokens in shards that are never written.
#pragma once

#include <string>
#include <vector>

#include "base/rng.h"
#include "data/token_stream.h"

namespace cachalot::testing {

// Documents of 1 to `longest` tokens, the last the end-of-text token 1; `tokens` in all, or a few more.
inline Shard random_shard(const std::string& part, int64_t tokens, int64_t longest, uint64_t seed,
                          bool held_out = false, int64_t vocab = 70000) {
  ShardBuilder builder({.vocab_size = vocab,
                        .end_of_text = 1,
                        .tokenizer = 42,
                        .held_out = held_out,
                        .part = part,
                        .source = ""});
  for (uint64_t d = 0; builder.header().tokens < tokens; ++d) {
    std::vector<int32_t> ids(1 + random_below(seed, 0, d, uint64_t(longest)));
    for (size_t i = 0; i + 1 < ids.size(); ++i)
      ids[i] = int32_t(2 + random_below(seed, 1 + d, i, uint64_t(vocab) - 2));
    ids.back() = 1;
    builder.add(ids, 4 * int64_t(ids.size()));
  }
  return Shard::from_bytes(shard_bytes(std::move(builder)), part);
}

// One document of the tokens 2, 3, 4, ...: a token says where it stands.
inline TokenStream counting_stream(int64_t tokens, int64_t shards = 1) {
  std::vector<Shard> list;
  int64_t next = 0;
  for (int64_t s = 0; s < shards; ++s) {
    ShardBuilder builder({.vocab_size = 1 << 30,
                          .end_of_text = 1,
                          .tokenizer = 42,
                          .held_out = false,
                          .part = "n",
                          .source = ""});
    std::vector<int32_t> ids;
    for (const int64_t end = tokens * (s + 1) / shards; next < end; ++next) ids.push_back(int32_t(next));
    if (!ids.empty()) builder.add(ids, 0);
    list.push_back(Shard::from_bytes(shard_bytes(std::move(builder)), "n" + std::to_string(s)));
  }
  return TokenStream("n", std::move(list));
}

}  // namespace cachalot::testing
