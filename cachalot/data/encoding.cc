#include "data/encoding.h"

#include <fmt/format.h>
#include <iconv.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "base/text.h"
#include "data/unicode.h"

namespace cachalot {

namespace {

using namespace std::string_view_literals;

class Iconv {
 public:
  explicit Iconv(const char* from) : handle_(::iconv_open("UTF-8", from)) {}
  ~Iconv() {
    if (valid()) ::iconv_close(handle_);
  }
  Iconv(const Iconv&) = delete;
  bool valid() const { return handle_ != iconv_t(-1); }

  // False when `in` holds a sequence that the encoding does not define, or ends inside one.
  bool convert(std::string_view in, std::string& out) {
    out.resize(in.size() + in.size() / 2 + 16);
    char* from = const_cast<char*>(in.data());  // iconv does not write to it
    size_t left = in.size(), done = 0;
    for (bool flush = false;;) {
      char* to = out.data() + done;
      size_t room = out.size() - done;
      const size_t code =
          flush ? ::iconv(handle_, nullptr, nullptr, &to, &room) : ::iconv(handle_, &from, &left, &to, &room);
      done = size_t(to - out.data());
      if (code == size_t(-1)) {
        if (errno != E2BIG) return false;
        out.resize(out.size() * 2);
      } else if (flush) {
        out.resize(done);
        return true;
      } else {
        flush = true;
      }
    }
  }

 private:
  iconv_t handle_;
};

// Characters of a text by what they tell about its language.
struct Census {
  int64_t high = 0;  // beyond ASCII
  int64_t han = 0, hiragana = 0, hangul = 0, halfwidth = 0, cjk_marks = 0;
  int64_t common = 0;  // of the list
  int64_t odd = 0;     // private use, unassigned blocks, U+FFFD
};

Census take_census(std::string_view text, std::string_view common) {
  Census census;
  std::vector<uint32_t> list;
  for (size_t i = 0; i < common.size(); i += 3) list.push_back(decode_utf8(common, i, 3));
  for (size_t i = 0; i < text.size();) {
    const int length = utf8_length(text, i);
    const uint32_t c = decode_utf8(text, i, length);
    i += size_t(length);
    if (c < 0x80) continue;
    ++census.high;
    census.han += c >= 0x4E00 && c <= 0x9FFF;
    census.hiragana += c >= 0x3041 && c <= 0x3096;
    census.hangul += c >= 0xAC00 && c <= 0xD7A3;
    census.halfwidth += c >= 0xFF61 && c <= 0xFF9F;
    census.cjk_marks += (c >= 0x3000 && c <= 0x3040) || (c >= 0x30A0 && c <= 0x30FF) ||
                        (c >= 0xFF01 && c <= 0xFF60) || (c >= 0x2010 && c <= 0x2030);
    census.odd += (c >= 0xE000 && c < 0xF900) || c == 0xFFFD || c >= 0x30000;
    census.common += std::find(list.begin(), list.end(), c) != list.end();
  }
  return census;
}

// What a conversion must look like to be believed.
struct Guess {
  const char *name, *iconv;
  std::string_view common;  // the commonest characters of the language
  bool (*plausible)(const Census&);
};
bool is_chinese(const Census& c) {
  return c.han * 10 >= c.high * 7 && c.common * 100 >= c.han * 6 && c.hiragana * 20 <= c.high &&
         (c.han + c.cjk_marks) * 100 >= c.high * 95;
}
bool is_japanese(const Census& c) {
  return c.hiragana * 100 >= c.high * 20 && c.halfwidth * 20 <= c.high && c.common * 10 >= c.hiragana * 3 &&
         (c.han + c.hiragana + c.cjk_marks) * 100 >= c.high * 95;
}
bool is_korean(const Census& c) {
  return c.hangul * 10 >= c.high * 8 && c.common * 100 >= c.hangul * 8 &&
         (c.hangul + c.han + c.cjk_marks) * 100 >= c.high * 95;
}
constexpr std::string_view kSimplified = "的一是不了在人有我他这中大来上个国到说们为子和你地出会时要以可";
constexpr std::string_view kTraditional = "的一是不了在人有我他這中大來上個國到說們為子和你地出會時要以可";
constexpr std::string_view kKana = "のにはをたがでてとしれさるいもすなこ";
constexpr std::string_view kSyllables = "이다는의을에가은를하고지로한기";
constexpr Guess kGuesses[] = {
    {"euc-jp", "EUC-JP", kKana, is_japanese},        {"shift_jis", "CP932", kKana, is_japanese},
    {"gb18030", "GB18030", kSimplified, is_chinese}, {"big5", "BIG5-HKSCS", kTraditional, is_chinese},
    {"euc-kr", "CP949", kSyllables, is_korean},
};

bool is_western(std::string_view bytes) {
  int64_t high = 0, beside = 0, letters = 0;
  const auto ascii_letter = [&](size_t i) {
    return i < bytes.size() && (bytes[i] | 32) >= 'a' && (bytes[i] | 32) <= 'z';
  };
  for (size_t i = 0; i < bytes.size(); ++i) {
    const uint8_t c = uint8_t(bytes[i]);
    if (c < 0x80) continue;
    ++high;
    if (c == 0x81 || c == 0x8D || c == 0x8F || c == 0x90 || c == 0x9D) return false;  // undefined
    if (c >= 0xC0 && c != 0xD7 && c != 0xF7) {
      ++letters;
      beside += (i > 0 && ascii_letter(i - 1)) || ascii_letter(i + 1);
    } else if (!(c >= 0x91 && c <= 0x97) && c != 0x85 && c != 0x80 && c != 0x8C && c != 0x9C && c != 0xAB &&
               c != 0xBB && c != 0xA0 && c != 0xA7 && c != 0xA9 && c != 0xAE && c != 0xB0 && c != 0xA3 &&
               c != 0xB7 && c != 0xBF && c != 0xA1) {
      return false;  // a mark that running text hardly uses
    }
  }
  return high * 5 <= int64_t(bytes.size()) && beside * 10 >= letters * 7;
}

// UTF-8 that lost a few bytes: ten whole characters for each of them.
bool replace_errors(std::string& text) {
  int64_t whole = 0, bad = 0;
  for (size_t i = 0; i < text.size();) {
    const int length = utf8_length(text, i);
    whole += length > 1;
    bad += length == 0;
    i += size_t(std::max(length, 1));
  }
  if (whole < 10 * bad) return false;
  text = utf8_lossy(text);
  return true;
}

bool convert(std::string& text, size_t skip, const char* from) {
  Iconv iconv(from);
  std::string out;
  if (!iconv.valid() || !iconv.convert(std::string_view(text).substr(skip), out)) return false;
  if (out.find('\0') != std::string::npos) return false;
  text = std::move(out);
  return true;
}

struct Mark {
  std::string_view bytes;
  const char *name, *iconv;
};
constexpr Mark kMarks[] = {
    {"\xFF\xFE\0\0"sv, "utf-32le", "UTF-32LE"},  // before UTF-16, whose mark it begins with
    {"\0\0\xFE\xFF"sv, "utf-32be", "UTF-32BE"},
    {"\xFF\xFE"sv, "utf-16le", "UTF-16LE"},
    {"\xFE\xFF"sv, "utf-16be", "UTF-16BE"},
};

}  // namespace

bool is_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    uint64_t eight;
    if (text.size() - i >= 8 &&
        (std::memcpy(&eight, text.data() + i, 8), (eight & 0x8080808080808080u) == 0)) {
      i += 8;
      continue;
    }
    const int length = utf8_length(text, i);
    if (length == 0) return false;
    i += size_t(length);
  }
  return true;
}

std::string to_utf8(std::string& text, std::string_view assume) {
  if (text.starts_with("\xEF\xBB\xBF"sv) && is_utf8(text) && text.find('\0') == std::string::npos) {
    text.erase(0, 3);
    return "utf-8";
  }
  for (const Mark& mark : kMarks)
    if (text.starts_with(mark.bytes) && convert(text, mark.bytes.size(), mark.iconv)) return mark.name;
  if (is_utf8(text)) return text.find('\0') == std::string::npos ? "utf-8" : "";
  if (assume == "utf-8" || text.find('\0') != std::string::npos) return "";
  if (assume == "auto") {
    if (replace_errors(text)) return "utf-8 with errors";
    for (const Guess& guess : kGuesses) {
      // A long text is judged by its beginning, cut between lines.
      std::string tried = text.substr(0, 1 << 16);
      if (tried.size() < text.size())
        tried.resize(tried.rfind('\n') == std::string::npos ? 0 : tried.rfind('\n'));
      if (!convert(tried, 0, guess.iconv)) continue;
      const Census census = take_census(tried, guess.common);
      if (census.high < 20 || census.odd * 100 > census.high || !guess.plausible(census)) continue;
      if (convert(text, 0, guess.iconv)) return guess.name;
    }
    return is_western(text) && convert(text, 0, "CP1252") ? "cp1252" : "";
  }
  return convert(text, 0, std::string(assume).c_str()) ? std::string(assume) : "";
}

void check_encoding_name(const std::string& name) {
  if (name == "auto" || name == "utf-8" || Iconv(name.c_str()).valid()) return;
  throw Error(fmt::format("iconv knows no encoding \"{}\"", utf8_lossy(name)))
      .hint("`iconv --list` names them; for example cp1252, gb18030, shift_jis, euc-jp");
}

}  // namespace cachalot
