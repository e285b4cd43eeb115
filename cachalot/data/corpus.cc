#include "data/corpus.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"
#include "data/document_encoder.h"

namespace cachalot {

size_t training_bytes(std::string_view document, double held_out) {
  const size_t size = document.size();
  size_t cut = size - std::min(size, size_t(double(size) * held_out));
  if (cut == size) return size;
  const size_t line_end = document.find('\n', cut == 0 ? 0 : cut - 1);  // a cut right after a newline stays
  if (line_end != std::string_view::npos && line_end < cut + (size - cut) / 2) return line_end + 1;
  // Back to the start of the character that the cut is in; bytes of no character may be cut anywhere.
  for (size_t back = 1; back <= 3 && back <= cut; ++back)
    if (const int length = utf8_length(document, cut - back); length > int(back))
      return cut - back + size_t(length);
  return cut;
}

TokenData tokenize_files(const std::vector<std::string>& files, const Tokenizer& tokenizer, double held_out,
                         ThreadPool* pool) {
  if (!(held_out >= 0 && held_out < 1))
    throw Error(
        fmt::format("the held-out share of the text is {}; it must be at least 0 and below 1", held_out));
  const DocumentEncoder encoder(tokenizer, {});
  ShardHeader header{.vocab_size = tokenizer.vocab_size(),
                     .end_of_text = encoder.end_of_text(),
                     .tokenizer = tokenizer_id(tokenizer),
                     .part = "text",
                     .source = ""};
  ShardBuilder train(header);
  header.held_out = true;
  ShardBuilder kept(header);
  for (const std::string& file : files) {
    const std::string text = read_file(file);
    const size_t cut = training_bytes(text, held_out);
    const auto add = [&](ShardBuilder& builder, std::string_view part) {
      if (!part.empty())
        builder.add(encoder.encode(part, {.plain = true, .pool = pool}), int64_t(part.size()));
    };
    add(train, std::string_view(text).substr(0, cut));
    add(kept, std::string_view(text).substr(cut));
  }
  if (train.header().tokens == 0)
    throw Error(files.empty() ? "no text files to train on"
                              : fmt::format("{} holds no text to train on", fmt::join(files, ", ")))
        .hint("pass files with text");
  std::vector<Shard> shards{Shard::from_bytes(shard_bytes(std::move(train)), "the training text")};
  if (kept.header().tokens > 0)
    shards.push_back(Shard::from_bytes(shard_bytes(std::move(kept)), "the held-out text"));
  return token_data(std::move(shards));
}

}  // namespace cachalot
