// From text to a folder of token shards: `cachalot data tokenize`.
//
// One thread cuts the inputs into records (data/documents.h), all threads parse and encode them
// (data/document_encoder.h), and in the order of the text each document goes to the open shard of its part, and
// of its side if a share is held out. A shard is closed when it has `shard_tokens` tokens, or when 128 bytes of
// text of any part have been read for each of these since its first document (so that a rare part cannot make
// a resumed run read everything again). All of this depends on the text alone: not on the number of threads,
// nor on how often the run was stopped.
//
// A shard appears at once, then shards.json is written anew; a process that is killed anywhere leaves whole
// shards and a list of them, and the next one begins at the first document that is in none. A shard that was
// removed or damaged is made anew.
//
// Memory: 40 MiB of text and tokens in flight, one document (ReadOptions::max_bytes) and its tokens a thread,
// 1 MiB and 8 bytes a document for each open shard: independent of the size of the corpus, apart from the list
// of inputs and of shards (some 400 bytes each).
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/document_encoder.h"
#include "data/documents.h"
#include "data/shard_folder.h"

namespace cachalot {

struct TokenizeOptions {
  std::vector<InputFile> inputs;
  ReadOptions reading;
  EncodeRecipe recipe;
  double held_out =
      0;  // share of the documents that is kept from training, chosen by a checksum of their text
  int64_t shard_tokens = int64_t{64} << 20;
  std::string tokenizer_path;  // a tokenizer.json or its directory; copied into `out`
  std::string out;
  bool overwrite = false;  // remove what an earlier run with other settings wrote there
  std::string command;     // what to run again to continue, or to repair, without --out: stands in the shards
  ThreadPool* pool = nullptr;
};

struct TokenizeProgress {
  int64_t consumed = 0, total = 0;     // bytes on the disk of the inputs that were left at the start
  int64_t tokens = 0, text_bytes = 0;  // written by this call
};

struct TokenizeResult {
  bool stopped = false;
  int64_t shards_before = 0;  // that were there already
  TokenizeProgress progress;
  ShardFolder folder;
};

// Error: inputs or settings that cannot be, a damaged archive, a full disk, a folder that was begun with other
// settings or is being written by another process. Between two documents after `stop` it returns.
TokenizeResult tokenize(const Tokenizer& tokenizer, const TokenizeOptions& options,
                        const std::function<void(const TokenizeProgress&)>& report,
                        const std::atomic<bool>& stop);

}  // namespace cachalot
