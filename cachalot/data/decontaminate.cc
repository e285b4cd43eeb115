#include "data/decontaminate.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "data/checksum.h"
#include "data/documents.h"
#include "data/encoding.h"

namespace cachalot {

namespace {

constexpr int64_t kMaxFile = int64_t(1) << 30;  // evaluation files are small; this one is read whole

std::string read_whole(const std::string& path) {
  const auto source = open_bytes(path);
  std::string bytes;
  for (size_t done = 0;;) {
    bytes.resize(done + (1 << 18));
    const size_t n = source->read({bytes.data() + done, size_t(1 << 18)});
    done += n;
    if (n == 0) {
      bytes.resize(done);
      return bytes;
    }
    if (int64_t(done) > kMaxFile)
      throw Error(fmt::format("{} is larger than 1 GiB unpacked; evaluation files are small", path))
          .hint("pass training text as --input, evaluation files as --decontaminate");
  }
}

}  // namespace

void check(const DecontaminateOptions& o) {
  if (o.min_words < 4 || o.words < o.min_words || o.cjk_words < o.min_words || o.words > 100 ||
      o.cjk_words > 100)
    throw Error(fmt::format(
        "decontaminate: words {}, cjk_words {}, min_words {}; 4 <= min_words <= the others <= 100", o.words,
        o.cjk_words, o.min_words));
}

Decontaminator::Decontaminator(const std::vector<std::string>& paths, const DecontaminateOptions& options)
    : options_(options) {
  check(options_);
  slots_.resize(1 << 12);
  anchors_.resize(slots_.size());
  mask_ = slots_.size() - 1;
  if (paths.empty()) return;
  // Every string of a value, however deep.
  const auto walk = [&](auto&& self, const Json& value, uint32_t file) -> void {
    if (value.is_string()) {
      add_item(value.get_ref<const std::string&>(), file);
    } else if (value.is_array()) {
      for (const Json& item : value) self(self, item, file);
    } else if (value.is_object()) {
      for (const auto& [key, item] : value.items())
        if (std::find(options_.skip_fields.begin(), options_.skip_fields.end(), key) ==
            options_.skip_fields.end())
          self(self, item, file);
    }
  };
  for (const InputFile& input : find_inputs(paths)) {
    const uint32_t file = uint32_t(files_.size());
    files_.push_back({.path = input.path});
    std::string text = read_whole(input.path);
    if (to_utf8(text, "auto").empty()) throw Error(fmt::format("{} is no text", input.path));
    fingerprint_ = mix(fingerprint_ ^ checksum64(text));
    std::string_view name = input.path;
    for (const std::string_view packing : {".gz", ".zst"})
      if (name.ends_with(packing)) name.remove_suffix(packing.size());
    const bool lines = name.ends_with(".jsonl") || name.ends_with(".ndjson");
    if (name.ends_with(".json")) {
      walk(walk, parse_json(text, input.path), file);
      continue;
    }
    int64_t number = 0;
    for (size_t at = 0; at < text.size();) {
      const size_t end = std::min(text.find('\n', at), text.size());
      const std::string_view line = std::string_view(text).substr(at, end - at);
      ++number;
      at = end + 1;
      if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
      if (lines) walk(walk, parse_json(line, fmt::format("{}:{}", input.path, number)), file);
      else add_item(line, file);
    }
  }
  present_.assign(slots_.size() / 4, 0);
  for (size_t i = 0; i < slots_.size(); ++i)
    if (slots_[i].hash) present_[(anchors_[i] & mask_) / 4] |= uint64_t(1) << (anchors_[i] >> 58);
  fingerprint_ =
      mix(fingerprint_ ^ uint64_t(options_.words << 40 | options_.cjk_words << 20 | options_.min_words));
}

void Decontaminator::add_item(std::string_view text, uint32_t file) {
  if (text.size() >= UINT32_MAX)
    throw Error(fmt::format("{}: an item of {} bytes", files_[file].path, text.size()));
  find_words(text, words_);
  const size_t count = words_.hash.size();
  if (count == 0) return;
  ++files_[file].items;
  const auto is_ideograph = [&](size_t i) {
    return words_.end[i] - words_.begin[i] >= 3 && uint8_t(text[words_.begin[i]]) >= 0xE3;
  };
  size_t ideographs = 0;
  for (size_t i = 0; i < count; ++i) ideographs += is_ideograph(i);
  const bool cjk = ideographs * 2 > count;
  const size_t n = std::min(count, size_t(cjk ? options_.cjk_words : options_.words));
  const size_t least =
      size_t(cjk ? std::min(options_.min_words * 3 / 2, options_.cjk_words) : options_.min_words);
  if (count < least) {
    ++files_[file].short_items;
    return;
  }
  // Zeros, counting, tables: such n-grams are in innocent text, too.
  const auto is_number = [&](size_t i) {
    return text[words_.begin[i]] >= '0' && text[words_.begin[i]] <= '9';
  };
  bool any = false;
  std::vector<uint64_t> distinct;
  for (size_t i = 0; i + n <= count; ++i) {
    size_t numbers = 0;
    for (size_t j = i; j < i + n; ++j) numbers += is_number(j);
    distinct.assign(words_.hash.begin() + int64_t(i), words_.hash.begin() + int64_t(i + n));
    std::sort(distinct.begin(), distinct.end());
    const auto different = size_t(std::unique(distinct.begin(), distinct.end()) - distinct.begin());
    if (numbers * 2 > n || different * 2 <= n) continue;
    any = true;
    add_gram(words_.hash.data() + i, n, file);
  }
  if (!any) ++files_[file].short_items;
}

void Decontaminator::add_gram(const uint64_t* words, size_t n, uint32_t file) {
  insert(hash_words(words, size_t(options_.min_words)),
         {.hash = hash_words(words, n) | 1, .file = file, .words = uint32_t(n)});
}

void Decontaminator::insert(uint64_t anchor, const Gram& gram) {
  if (size_t(grams_) * 3 / 2 >= slots_.size()) {
    std::vector<uint64_t> anchors(slots_.size() * 2);
    std::vector<Gram> slots(slots_.size() * 2);
    anchors.swap(anchors_);
    slots.swap(slots_);
    mask_ = slots_.size() - 1;
    grams_ = 0;
    for (size_t i = 0; i < slots.size(); ++i)
      if (slots[i].hash) insert(anchors[i], slots[i]);
  }
  for (uint64_t i = anchor & mask_;; i = (i + 1) & mask_) {
    if (slots_[i].hash == gram.hash && anchors_[i] == anchor) return;  // the file that had it first
    if (slots_[i].hash) continue;
    anchors_[i] = anchor;
    slots_[i] = gram;
    ++grams_;
    return;
  }
}

Contamination Decontaminator::find(const Words& words) const {
  if (grams_ == 0) return {};
  const size_t count = words.hash.size(), least = size_t(options_.min_words);
  RollingHash rolling(least);
  for (size_t at = 0; at + least <= count; ++at) {
    const uint64_t anchor = at == 0 ? rolling.first(words.hash.data())
                                    : rolling.next(words.hash[at - 1], words.hash[at + least - 1]);
    if (!(present_[(anchor & mask_) / 4] >> (anchor >> 58) & 1)) continue;
    for (uint64_t i = anchor & mask_; slots_[i].hash; i = (i + 1) & mask_) {
      if (anchors_[i] != anchor) continue;
      const Gram& gram = slots_[i];
      if (at + gram.words > count || (hash_words(words.hash.data() + at, gram.words) | 1) != gram.hash)
        continue;
      return {.found = true,
              .file = int(gram.file),
              .begin = words.begin[at],
              .end = words.end[at + gram.words - 1]};
    }
  }
  return {};
}

}  // namespace cachalot
