#include "data/jsonl.h"

#include <fmt/format.h>

#include <algorithm>

#include "data/json_fields.h"
#include "data/unicode.h"

namespace cachalot {

namespace {

constexpr int kMaxDepth = 64;

class LineReader {
 public:
  LineReader(std::string_view line, std::span<JsonField> fields) : text_(line), fields_(fields) {}

  std::string read() {
    space();
    if (!object()) return fmt::format("not valid JSON at byte {}: {}", at_, wrong_);
    space();
    if (at_ != text_.size()) return fmt::format("not valid JSON at byte {}: more after the object", at_);
    return {};
  }

 private:
  bool fail(std::string what) {
    wrong_ = std::move(what);
    return false;
  }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  void space() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r'))
      ++at_;
  }

  // The outermost object.
  bool object() {
    if (peek() != '{') return fail("expected an object");
    ++at_;
    space();
    if (peek() == '}') return ++at_, true;
    for (std::string name;;) {
      name.clear();
      if (!string(&name)) return false;
      space();
      if (peek() != ':') return fail("expected ':'");
      ++at_;
      space();
      const auto field =
          std::find_if(fields_.begin(), fields_.end(), [&](const JsonField& f) { return f.name == name; });
      if (field != fields_.end() ? !wanted(*field) : !value(1)) return false;
      space();
      if (peek() == '}') return ++at_, true;
      if (peek() != ',') return fail("expected ',' or '}'");
      ++at_;
      space();
    }
  }

  bool wanted(JsonField& field) {
    if (field.found) return fail(fmt::format("field {} twice", in_quotes(field.name)));
    const size_t begin = at_;
    field.value.clear();
    if (peek() == '"') {
      field.found = true;
      return string(&field.value);
    }
    if (peek() == 'n') return word("null");
    if (peek() != '-' && !(peek() >= '0' && peek() <= '9'))
      return fail(fmt::format("field {} must be a string", in_quotes(field.name)));
    if (!number()) return false;
    field.found = true;
    field.value = text_.substr(begin, at_ - begin);
    return true;
  }

  bool value(int depth) {
    if (depth > kMaxDepth) return fail("nested deeper than 64");
    switch (peek()) {
      case '"': return string(nullptr);
      case '{':
      case '[': return list(peek() == '{', depth);
      case 't': return word("true");
      case 'f': return word("false");
      case 'n': return word("null");
      default: return number();
    }
  }

  bool list(bool object, int depth) {
    const char close = object ? '}' : ']';
    ++at_;
    space();
    if (peek() == close) return ++at_, true;
    for (;;) {
      if (object) {
        if (!string(nullptr)) return false;
        space();
        if (peek() != ':') return fail("expected ':'");
        ++at_;
        space();
      }
      if (!value(depth + 1)) return false;
      space();
      if (peek() == close) return ++at_, true;
      if (peek() != ',') return fail(fmt::format("expected ',' or '{}'", close));
      ++at_;
      space();
    }
  }

  bool word(std::string_view expected) {
    if (!text_.substr(at_).starts_with(expected)) return fail("expected a value");
    at_ += expected.size();
    return true;
  }

  bool digits() {
    const size_t begin = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    return at_ > begin || fail("expected a value");
  }

  bool number() {
    if (peek() == '-') ++at_;
    if (peek() == '0') ++at_;
    else if (!digits()) return false;
    if (peek() == '.') {
      ++at_;
      if (!digits()) return false;
    }
    if (peek() == 'e' || peek() == 'E') {
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      if (!digits()) return false;
    }
    return true;
  }

  // `out` null: only checked.
  bool string(std::string* out) {
    if (peek() != '"') return fail("expected a string");
    for (size_t begin = ++at_;;) {
      while (at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\\' && uint8_t(text_[at_]) >= 0x20)
        ++at_;
      if (out) out->append(text_, begin, at_ - begin);
      if (at_ == text_.size()) return fail("a string without its end");
      if (text_[at_] == '"') return ++at_, true;
      if (text_[at_] != '\\') return fail("a control character inside a string");
      ++at_;
      if (!escape(out)) return false;
      begin = at_;
    }
  }

  bool hex(uint32_t* c) {
    *c = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char digit = peek();
      const int value = digit >= '0' && digit <= '9'   ? digit - '0'
                        : digit >= 'a' && digit <= 'f' ? digit - 'a' + 10
                        : digit >= 'A' && digit <= 'F' ? digit - 'A' + 10
                                                       : -1;
      if (value < 0) return fail("expected four hexadecimal digits");
      *c = *c << 4 | uint32_t(value);
    }
    return true;
  }

  bool escape(std::string* out) {
    constexpr std::string_view kFrom = "\"\\/bfnrt", kTo = "\"\\/\b\f\n\r\t";
    const char letter = peek();
    if (const size_t i = kFrom.find(letter); i != std::string_view::npos && letter != '\0') {
      ++at_;
      if (out) *out += kTo[i];
      return true;
    }
    if (letter != 'u') return fail("an escape that JSON does not know");
    ++at_;
    uint32_t c, low;
    if (!hex(&c)) return false;
    if (c >= 0xD800 && c < 0xDC00 && text_.substr(at_).starts_with("\\u")) {
      const size_t back = at_;
      at_ += 2;
      if (!hex(&low)) return false;
      if (low >= 0xDC00 && low < 0xE000) c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
      else at_ = back;  // half a pair, and then another escape
    }
    if (c >= 0xD800 && c < 0xE000) c = 0xFFFD;
    if (out) append_utf8(c, *out);
    return true;
  }

  std::string_view text_;
  std::span<JsonField> fields_;
  size_t at_ = 0;
  std::string wrong_;
};

}  // namespace

std::string read_json_fields(std::string_view line, std::span<JsonField> fields) {
  for (JsonField& field : fields) field.found = false;
  return LineReader(line, fields).read();
}

void append_json_string(std::string_view text, std::string& out) {
  out += '"';
  size_t done = 0;
  const auto flush = [&](size_t end) { out.append(text, done, end - done); };
  for (size_t i = 0; i < text.size(); ++i) {
    const uint8_t c = uint8_t(text[i]);
    if (c >= 0x20 && c != '"' && c != '\\' && c != 0x7F && c != 0xE2) continue;
    if (c == 0xE2) {
      if (text.substr(i, 3) != "\xE2\x80\xA8" && text.substr(i, 3) != "\xE2\x80\xA9") continue;
      flush(i);
      out += text[i + 2] == '\xA8' ? "\\u2028" : "\\u2029";
      i += 2;
    } else {
      flush(i);
      switch (c) {
        case '"': out += "\\\""; break;
        case '\\': out += "\\\\"; break;
        case '\n': out += "\\n"; break;
        case '\t': out += "\\t"; break;
        case '\r': out += "\\r"; break;
        default: fmt::format_to(std::back_inserter(out), "\\u{:04x}", c);
      }
    }
    done = i + 1;
  }
  flush(text.size());
  out += '"';
}

}  // namespace cachalot
