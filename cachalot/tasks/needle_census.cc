#include "tasks/needle_census.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <string_view>

namespace cachalot {

namespace {

constexpr std::string_view kBegin = "The secret number of ", kIs = " is ";
constexpr size_t kLongestKey = 40;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

struct Sentence {
  std::string_view key;
  size_t end = 0;  // behind the number's last digit
};

// Every sentence with a number; a question, which has none, is passed over.
std::vector<Sentence> find_sentences(std::string_view text) {
  std::vector<Sentence> found;
  for (size_t at = text.find(kBegin); at != std::string_view::npos; at = text.find(kBegin, at + 1)) {
    const size_t key = at + kBegin.size(), is = text.find(kIs, key);
    if (is == std::string_view::npos || is - key > kLongestKey) continue;
    size_t end = is + kIs.size();
    while (end < text.size() && is_digit(text[end])) ++end;
    if (end > is + kIs.size()) found.push_back({text.substr(key, is - key), end});
  }
  return found;
}

}  // namespace

std::vector<int64_t> lookup_contexts(const Tokenizer& tokenizer, std::span<const int32_t> document) {
  std::string text;
  std::vector<size_t> ends;  // of every token in the text
  ends.reserve(document.size());
  for (const int32_t id : document) ends.push_back((text += tokenizer.token_bytes(id)).size());
  std::set<std::string_view> said;
  std::vector<int64_t> contexts;
  for (const Sentence& s : find_sentences(text)) {
    if (said.insert(s.key).second) continue;
    contexts.push_back(std::lower_bound(ends.begin(), ends.end(), s.end) - ends.begin() + 1);
  }
  return contexts;
}

bool is_near(int64_t context, int64_t length, double margin) {
  return std::abs(double(context - length)) <= margin * double(length);
}

int64_t NeedleCensus::near() const {
  int64_t sum = 0;
  for (const Part& part : parts)
    for (const int64_t n : part.near) sum += n;
  return sum;
}

NeedleCensus take_needle_census(std::span<const TokenStream> parts, const Tokenizer& tokenizer,
                                std::span<const int64_t> lengths, double margin) {
  NeedleCensus census;
  for (const TokenStream& stream : parts) {
    NeedleCensus::Part part{.name = stream.name(), .near = std::vector<int64_t>(lengths.size())};
    const auto count = [&](std::span<const int32_t> document) {
      ++part.documents;
      for (const int64_t context : lookup_contexts(tokenizer, document)) {
        part.shortest = part.lookups++ ? std::min(part.shortest, context) : context;
        part.longest = std::max(part.longest, context);
        for (size_t i = 0; i < lengths.size(); ++i) part.near[i] += is_near(context, lengths[i], margin);
      }
    };
    std::vector<int32_t> document;
    for (const Shard& shard : stream.shards())
      for (int64_t i = 0; i < shard.documents(); ++i) {
        const int64_t begin = shard.document_begin(i);
        document.resize(size_t(shard.document_end(i) - begin));
        shard.read(begin, document);
        count(document);
      }
    census.parts.push_back(std::move(part));
  }
  return census;
}

}  // namespace cachalot
