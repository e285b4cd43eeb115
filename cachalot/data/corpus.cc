#include "data/corpus.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"

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

Corpus::Corpus(const std::vector<std::string>& files, const Tokenizer& tokenizer, double held_out,
               ThreadPool* pool) {
  if (!(held_out >= 0 && held_out < 1))
    throw Error(
        fmt::format("the held-out share of the text is {}; it must be at least 0 and below 1", held_out));
  const auto eos = tokenizer.eos_id();
  if (!eos)
    throw Error("the tokenizer has no end-of-text token, which must stand between documents")
        .hint("name it as \"eos_token\" in tokenizer_config.json beside tokenizer.json");
  const auto append = [&](std::vector<int32_t>& stream, std::string_view text) {
    if (text.empty()) return;
    const std::vector<int32_t> ids = tokenizer.encode(text, {.parse_special = false, .pool = pool});
    stream.insert(stream.end(), ids.begin(), ids.end());
    stream.push_back(*eos);
  };
  for (const std::string& file : files) {
    const std::string text = read_file(file);
    const size_t cut = training_bytes(text, held_out);
    append(train_, std::string_view(text).substr(0, cut));
    append(held_out_, std::string_view(text).substr(cut));
  }
  if (train_.empty())
    throw Error(files.empty() ? "no text files to train on"
                              : fmt::format("{} holds no text to train on", fmt::join(files, ", ")))
        .hint("pass files with text");
  bytes_.resize(size_t(tokenizer.vocab_size()));
  for (size_t id = 0; id < bytes_.size(); ++id)
    bytes_[id] = int32_t(tokenizer.token_bytes(int32_t(id)).size());
  bytes_[size_t(*eos)] = 0;
}

int64_t Corpus::text_bytes(std::span<const int32_t> ids) const {
  int64_t sum = 0;
  for (const int32_t id : ids) sum += bytes_.at(size_t(id));
  return sum;
}

}  // namespace cachalot
