// Walking an object of a JSON file from outside: each complaint names the file, the field and the value.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

#include "base/json.h"

namespace cachalot {

// `text` in quotes, cut to 60 bytes, for messages.
std::string in_quotes(std::string_view text);

// Error "<path> is <value>; it must be <expected>", for a value of the wrong kind.
[[noreturn]] void throw_kind(const std::string& path, const Json& value, std::string_view expected);

// An object seen through its path, for example "tokenizer.json: model". Borrows the value.
class JsonObject {
 public:
  JsonObject(const Json& value, std::string path);  // Error unless it is an object

  const std::string& path() const { return path_; }
  std::string path(std::string_view key) const;  // "tokenizer.json: model.vocab"

  const Json* find(std::string_view key) const;  // nullptr when absent or null
  const Json& need(std::string_view key) const;  // Error when absent or null
  std::string_view need_string(std::string_view key) const;
  bool boolean(std::string_view key, bool otherwise) const;

  void refuse_unknown(std::initializer_list<std::string_view> known) const;
  // Error unless the field is absent, null or equal to `harmless` (a JSON value written out).
  void refuse_other(std::string_view key, std::string_view harmless) const;

 private:
  const Json* value_;
  std::string path_;
};

}  // namespace cachalot
