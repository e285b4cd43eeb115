// The shards of one part of a mixture, one after another as one stream of tokens; and how shards are found.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "data/shard.h"

namespace cachalot {

// Copies share the shards. Safe to use from several threads.
class TokenStream {
 public:
  TokenStream(std::string name, std::vector<Shard> shards);

  const std::string& name() const { return name_; }  // of the part
  int64_t tokens() const { return begins_.back(); }
  int64_t documents() const;
  int64_t text_bytes() const;
  const std::vector<Shard>& shards() const { return shards_; }
  uint64_t fingerprint() const;  // stands for every token

  // out = tokens [first, first + out.size()), checked (data/shard.h).
  void read(int64_t first, std::span<int32_t> out) const;

 private:
  std::string name_;
  std::vector<Shard> shards_;
  std::vector<int64_t> begins_{0};  // by shard: the place of its first token; at the end: all tokens
};

// What a run trains on and what it keeps from training: the parts in order of their names.
struct TokenData {
  std::vector<TokenStream> train, held_out;
};

// Sorts shards, given in any order of parts, into streams.
TokenData token_data(std::vector<Shard> shards);

// `paths`: folders that `cachalot data tokenize` wrote, or single .tok files. Error: nothing there, a folder
// whose tokenisation is not finished, a shard that is missing or damaged, shards of different tokenizers.
TokenData open_token_data(const std::vector<std::string>& paths);

}  // namespace cachalot
