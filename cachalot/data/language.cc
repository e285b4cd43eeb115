#include "data/language.h"

#include <algorithm>
#include <array>
#include <memory>

#include "base/error.h"
#include "base/text.h"
#include "data/unicode.h"
#include "data/words.h"

namespace cachalot {

namespace {

enum class Script : uint8_t { latin, cyrillic, arabic, devanagari, other };

struct Table {
  std::string_view code;
  Script script;
  std::string_view trigrams;
};

constexpr Table kTables[] = {
#include "data/language_tables.inc"
};
constexpr size_t kLanguages = std::size(kTables);

// Scripts that one language has for itself (or that a reader of this project would not tell apart further).
struct OwnScript {
  uint32_t first, last;
  std::string_view code;
};
constexpr OwnScript kOwnScripts[] = {
    {0x0370, 0x03FF, "el"}, {0x1F00, 0x1FFF, "el"}, {0x0530, 0x058F, "hy"}, {0x0590, 0x05FF, "he"},
    {0x0980, 0x09FF, "bn"}, {0x0A00, 0x0A7F, "pa"}, {0x0A80, 0x0AFF, "gu"}, {0x0B80, 0x0BFF, "ta"},
    {0x0C00, 0x0C7F, "te"}, {0x0C80, 0x0CFF, "kn"}, {0x0D00, 0x0D7F, "ml"}, {0x0D80, 0x0DFF, "si"},
    {0x0E00, 0x0E7F, "th"}, {0x0E80, 0x0EFF, "lo"}, {0x0F00, 0x0FFF, "bo"}, {0x1000, 0x109F, "my"},
    {0x10A0, 0x10FF, "ka"}, {0x1200, 0x137F, "am"}, {0x1780, 0x17FF, "km"}, {0xAC00, 0xD7A3, "ko"},
    {0x1100, 0x11FF, "ko"}, {0x3130, 0x318F, "ko"}};

constexpr size_t kSample = 6 << 10;    // bytes looked at
constexpr int kWindow = 64;            // trigrams (or letters of other scripts) that vote together
constexpr double kMaxSurprise = 13.2;  // bits a trigram: above, it is like no language here (docs/data.md)

uint64_t key_of(uint32_t a, uint32_t b, uint32_t c) { return uint64_t(a) << 42 | uint64_t(b) << 21 | c; }

// Surprise of a trigram in every language, in quarter bits: four languages a word of 64 bits, so that one
// addition serves four. A window of 64 trigrams adds up to less than 2^16.
constexpr size_t kLanes = (kLanguages + 3) / 4;
using Row = std::array<uint64_t, kLanes>;
int lane(const Row& row, size_t language) { return int(row[language / 4] >> (language % 4 * 16) & 0xFFFF); }

class Model {
 public:
  Model() {
    const auto set = [](Row& row, size_t language, uint32_t value) {
      const size_t shift = language % 4 * 16;
      row[language / 4] = (row[language / 4] & ~(uint64_t(0xFFFF) << shift)) | uint64_t(value) << shift;
    };
    const auto next = [](std::string_view text, size_t& at) {
      const int length = utf8_length(text, at);
      CHECK(length > 0);
      const uint32_t c = decode_utf8(text, at, length);
      at += size_t(length);
      return c;
    };
    rows_.emplace_back();  // the one of all that is not listed
    for (size_t i = 0; i < kLanguages; ++i) set(rows_[0], i, uint8_t(kTables[i].trigrams[0]) - 33u);
    for (size_t i = 0; i < kLanguages; ++i) {
      const std::string_view text = kTables[i].trigrams;
      for (size_t at = 1; at < text.size();) {
        const uint32_t a = next(text, at), b = next(text, at), c = next(text, at);
        const uint64_t key = key_of(a, b, c);
        size_t slot = slot_of(key);
        if (keys_[slot] == 0) {
          keys_[slot] = key;
          number_[slot] = uint16_t(rows_.size());
          rows_.push_back(rows_[0]);
        }
        set(rows_[number_[slot]], i, next(text, at) - 33u);
      }
    }
    CHECK(rows_.size() * 2 < keys_.size());
  }

  const Row& row(uint64_t key) const { return rows_[number_[slot_of(key)]]; }

 private:
  size_t slot_of(uint64_t key) const {
    size_t slot = mix(key) % keys_.size();
    while (keys_[slot] != 0 && keys_[slot] != key) slot = (slot + 1) % keys_.size();
    return slot;
  }
  std::vector<uint64_t> keys_ = std::vector<uint64_t>(1 << 15);
  std::vector<uint16_t> number_ = std::vector<uint16_t>(1 << 15);
  std::vector<Row> rows_;
};

const Model& model() {
  static const auto the_model = std::make_unique<const Model>();
  return *the_model;
}

Script script_of(uint32_t c) {
  if ((c | 32) >= 'a' && (c | 32) <= 'z') return Script::latin;
  if (c < 0x250) return Script::latin;
  if (c >= 0x1E00 && c <= 0x1EFF) return Script::latin;
  if (c >= 0x400 && c <= 0x52F) return Script::cyrillic;
  if ((c >= 0x600 && c <= 0x77F) || (c >= 0xFB50 && c <= 0xFEFC)) return Script::arabic;
  if (c >= 0x900 && c <= 0x97F) return Script::devanagari;
  return Script::other;
}

// Counts votes of windows; a window of letters of scripts with several languages is judged by its trigrams.
class Voter {
 public:
  explicit Voter(const Model& model) : model_(model) {}

  void letter(uint32_t c) {
    const Script script = script_of(c);
    if (script != Script::other && script != script_) {
      end_word();
      script_ = script;
    }
    if (script == Script::other) {
      end_word();
      ++others_;
      if ((c >= 0x3041 && c <= 0x30FE && c != 0x30FB) || (c >= 0xFF66 && c <= 0xFF9D)) return void(++kana_);
      if (table_.kind(c) == CharClass::cjk && !(c >= 0xAC00 && c <= 0xD7A3)) return void(++han_);
      for (const OwnScript& own : kOwnScripts)
        if (c >= own.first && c <= own.last) return void(++own_[size_t(&own - kOwnScripts)]);
      return;
    }
    if (a_ == 0) a_ = '_', b_ = 0;
    if (b_ == 0) b_ = c;
    else {
      trigram(a_, b_, c);
      a_ = b_;
      b_ = c;
    }
  }

  void end_word() {
    if (b_ != 0) trigram(a_, b_, '_');
    a_ = b_ = 0;
  }

  Language result() {
    end_word();
    if (window_ > 0) close_window(double(window_) / kWindow);
    // Ideographs between kana are Japanese; alone they are Chinese. A letter of these scripts is worth about
    // as much as two of an alphabet.
    std::vector<std::pair<double, std::string_view>> votes;
    double all = unknown_;
    const auto vote = [&](std::string_view code, double weight) {
      if (weight <= 0) return;
      all += weight;
      for (auto& [sum, known] : votes)
        if (known == code) return void(sum += weight);
      votes.push_back({weight, code});
    };
    for (size_t i = 0; i < kLanguages; ++i) vote(kTables[i].code, votes_[i]);
    const double east = double(han_ + kana_) * 2 / kWindow;
    vote(kana_ * 8 >= han_ ? "ja" : "zh", east);
    for (size_t i = 0; i < std::size(kOwnScripts); ++i) vote(kOwnScripts[i].code, double(own_[i]) / kWindow);
    if (votes.empty()) return {};
    const auto best = std::max_element(votes.begin(), votes.end(), [](const auto& x, const auto& y) {
      return x.first != y.first ? x.first < y.first : x.second > y.second;
    });
    if (best->first < unknown_ || best->first * kWindow < 12) return {};
    return {.code = best->second, .share = best->first / all};
  }

 private:
  void trigram(uint32_t a, uint32_t b, uint32_t c) {
    const Row& row = model_.row(key_of(a, b, c));
    for (size_t i = 0; i < kLanes; ++i) surprise_[i] += row[i];
    ++by_script_[size_t(script_)];
    if (++window_ == kWindow) close_window(1);
  }

  void close_window(double weight) {
    const size_t script = size_t(std::max_element(by_script_.begin(), by_script_.end()) - by_script_.begin());
    // What the windows before said breaks near ties: languages do not change every line.
    size_t best = kLanguages;
    double least = 0;
    for (size_t i = 0; i < kLanguages; ++i) {
      if (size_t(kTables[i].script) != script) continue;
      carried_[i] = carried_[i] * 0.75 + double(lane(surprise_, i)) / window_;
      if (best == kLanguages || carried_[i] < least) best = i, least = carried_[i];
    }
    CHECK(best < kLanguages);
    if (double(lane(surprise_, best)) / window_ / 4 > kMaxSurprise) unknown_ += weight;
    else votes_[best] += weight;
    surprise_.fill(0);
    by_script_.fill(0);
    window_ = 0;
  }

  const Model& model_;
  const CharTable& table_ = char_table();
  Script script_ = Script::latin;
  uint32_t a_ = 0, b_ = 0;  // the last two letters of the word
  int window_ = 0;
  std::array<int, 4> by_script_{};
  Row surprise_{};
  std::array<double, kLanguages> carried_{}, votes_{};
  double unknown_ = 0;
  int64_t han_ = 0, kana_ = 0, others_ = 0;
  std::array<int64_t, std::size(kOwnScripts)> own_{};
};

struct NamedStopWords {
  std::string_view code;
  StopWords words;
};

const std::vector<NamedStopWords>& stop_words() {
  // Gopher's eight for English; elsewhere the commonest function words.
  static const std::vector<NamedStopWords> lists = {
      {"en", StopWords("the be to of and that have with is are in for this it")},
      {"de", StopWords("der die das und ist nicht mit den von zu ein eine sie auf für im dem des werden")},
      {"fr", StopWords("le la les de des du et est un une que qui dans pour ne pas avec sur")},
      {"es", StopWords("el la los las de del y es en que un una por con para no se")},
      {"it", StopWords("il lo la i gli le di del della e è che un una per con non in")},
      {"pt", StopWords("o a os as de do da e é que um uma em para com não por no na")},
      {"nl", StopWords("de het een van en is dat in op te voor met niet zijn")},
      {"sv", StopWords("och att det som en ett är på av för med inte den till")},
      {"da", StopWords("og at det som en et er på af for med ikke den til")},
      {"no", StopWords("og at det som en et er på av for med ikke den til")},
      {"fi", StopWords("ja on ei se että hän oli ovat joka sekä tai mutta kuin")},
      {"pl", StopWords("i w z na do nie że się jest to o jak po dla")},
      {"cs", StopWords("a v na se je že s z do to i jako pro o")},
      {"hu", StopWords("a az és hogy nem is egy van ez meg de csak")},
      {"ro", StopWords("și de la în cu o un a pe nu este care din pentru")},
      {"tr", StopWords("ve bir bu için ile de da olarak daha gibi çok")},
      {"ru", StopWords("и в не на что с по как это для от из к о")},
      {"uk", StopWords("і в не на що з до як це для від та у")},
      {"ar", StopWords("في من على إلى أن هذا التي الذي عن مع لا ما")},
      {"zh", StopWords("的 是 在 了 不 和 有 我 这 他 一 人 中 上 为 也 與 這 個")},
      {"ja", StopWords("の に は を た が で て と し れ さ も い る す")},
      {"ko", StopWords("이 는 을 의 에 가 은 를 다 하 로 고 지")},
  };
  return lists;
}

}  // namespace

Language identify_language(std::string_view text) {
  const CharTable& table = char_table();
  Voter voter(model());
  // The beginning is often a title or a notice, so three pieces when the text is long.
  constexpr size_t kPieces = 4;
  const size_t piece = text.size() <= kSample ? text.size() : kSample / kPieces;
  const size_t step = text.size() <= kSample ? text.size() : text.size() / kPieces;
  for (size_t from = 0; piece > 0 && from + piece <= text.size(); from += std::max(step, size_t(1))) {
    size_t i = from;
    while (i < text.size() && i > 0 && (uint8_t(text[i]) & 0xC0) == 0x80) ++i;
    while (i < from + piece) {
      uint32_t c = uint8_t(text[i]);
      size_t length = 1;
      if (c >= 0x80) {
        length = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : 2;
        if (i + length > text.size()) break;
        c = decode_utf8(text, i, int(length));
      }
      i += length;
      if (c < 0x80 ? (c | 32) >= 'a' && (c | 32) <= 'z'
                   : table.kind(c) == CharClass::word || table.kind(c) == CharClass::cjk)
        voter.letter(table.fold(c));
      else voter.end_word();
    }
    voter.end_word();
  }
  return voter.result();
}

std::vector<std::string_view> known_languages() {
  std::vector<std::string_view> codes = {"zh", "ja"};
  for (const Table& table : kTables) codes.push_back(table.code);
  for (const OwnScript& own : kOwnScripts) codes.push_back(own.code);
  std::sort(codes.begin(), codes.end());
  codes.erase(std::unique(codes.begin(), codes.end()), codes.end());
  return codes;
}

StopWords::StopWords(std::string_view words) {
  for (size_t at = 0; at < words.size();) {
    const size_t end = std::min(words.find(' ', at), words.size());
    uint64_t hash = 0;
    for (size_t i = at; i < end;) {  // as data/filters.cc hashes a word
      const int length = utf8_length(words, i);
      hash = (hash ^ char_table().fold(decode_utf8(words, i, length))) * 0x9E3779B97F4A7C15u;
      hash ^= hash >> 29;
      i += size_t(length);
    }
    hashes_.push_back(mix(hash));
    at = end + 1;
  }
  std::sort(hashes_.begin(), hashes_.end());
}

bool StopWords::contains(uint64_t hash) const {
  return std::binary_search(hashes_.begin(), hashes_.end(), hash);
}

const StopWords* find_stop_words(std::string_view language) {
  for (const NamedStopWords& list : stop_words())
    if (list.code == language) return &list.words;
  return nullptr;
}

}  // namespace cachalot
