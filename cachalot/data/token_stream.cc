#include "data/token_stream.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "base/error.h"
#include "data/checksum.h"
#include "data/shard_folder.h"

namespace cachalot {

namespace fs = std::filesystem;

TokenStream::TokenStream(std::string name, std::vector<Shard> shards)
    : name_(std::move(name)), shards_(std::move(shards)) {
  for (const Shard& s : shards_) begins_.push_back(begins_.back() + s.tokens());
}

int64_t TokenStream::documents() const {
  int64_t sum = 0;
  for (const Shard& s : shards_) sum += s.documents();
  return sum;
}

int64_t TokenStream::text_bytes() const {
  int64_t sum = 0;
  for (const Shard& s : shards_) sum += s.header().text_bytes;
  return sum;
}

uint64_t TokenStream::fingerprint() const {
  uint64_t all = checksum64(name_);
  for (const Shard& s : shards_) {
    const uint64_t one = s.fingerprint();
    all = checksum64({reinterpret_cast<const char*>(&one), sizeof one}, all);
  }
  return all;
}

void TokenStream::read(int64_t first, std::span<int32_t> out) const {
  CHECK(0 <= first && first + int64_t(out.size()) <= tokens());
  size_t shard = size_t(std::upper_bound(begins_.begin(), begins_.end(), first) - begins_.begin()) - 1;
  for (; !out.empty(); ++shard) {
    const int64_t count = std::min(int64_t(out.size()), begins_[shard + 1] - first);
    shards_[shard].read(first - begins_[shard], out.first(size_t(count)));
    out = out.subspan(size_t(count));
    first += count;
  }
}

TokenData token_data(std::vector<Shard> shards) {
  std::map<std::string, std::vector<Shard>> sides[2];
  for (const Shard& s : shards) {
    const ShardHeader &h = s.header(), &first = shards[0].header();
    if (h.tokenizer != first.tokenizer || h.vocab_size != first.vocab_size)
      throw Error(fmt::format("{} holds tokens of tokenizer {}, {} of tokenizer {}", shards[0].name(),
                              tokenizer_id_text(first.tokenizer), s.name(), tokenizer_id_text(h.tokenizer)))
          .hint(
              "all text of a run goes through one tokenizer: make one of the two anew with cachalot data "
              "tokenize");
    sides[h.held_out][h.part].push_back(s);
  }
  TokenData data;
  for (auto& [part, list] : sides[0]) data.train.emplace_back(part, std::move(list));
  for (auto& [part, list] : sides[1]) data.held_out.emplace_back(part, std::move(list));
  return data;
}

namespace {

std::vector<std::string> shards_of_folder(const std::string& folder) {
  std::vector<std::string> paths;
  if (const auto list = read_shard_folder(folder)) {
    if (!list->complete)
      throw Error(fmt::format("the tokenisation into {} is not finished ({} shards so far)", folder,
                              list->shards.size()))
          .hint(fmt::format("run the same command again, it continues: {}", list->command));
    for (const ShardEntry& s : list->shards) {
      const std::string path = (fs::path(folder) / s.file).string();
      if (!fs::exists(path))
        throw Error(
            fmt::format("{} is missing; {} lists it with {} tokens", path, kShardFolderFile, s.tokens))
            .hint(fmt::format("run the same command again, it makes what is missing: {}", list->command));
      paths.push_back(path);
    }
    return paths;
  }
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().extension() == ".tok") paths.push_back(entry.path().string());
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace

TokenData open_token_data(const std::vector<std::string>& paths) {
  std::vector<Shard> shards;
  for (const std::string& path : paths) {
    if (!fs::is_directory(path)) {
      shards.push_back(Shard::open(path));
      continue;
    }
    const std::vector<std::string> files = shards_of_folder(path);
    if (files.empty())
      throw Error(fmt::format("{} holds no token shards", path))
          .hint(fmt::format("make some: cachalot data tokenize TEXT --tokenizer FILE --out {}", path));
    for (const std::string& file : files) shards.push_back(Shard::open(file));
  }
  return token_data(std::move(shards));
}

}  // namespace cachalot
