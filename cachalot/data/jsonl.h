// One line of JSONL, as fast as a corpus needs: the string fields that are asked for, everything else only
// checked. (base/json.h builds a tree and is an order of magnitude slower.)
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace cachalot {

struct JsonField {
  std::string_view name;  // of the outermost object
  std::string value;      // a string decoded, a number as it is spelled
  bool found = false;     // false as well when it is null
};

// Reads `line`, one JSON object and nothing after it, into `fields`; returns "" or what is wrong with the line.
// Strict (RFC 8259) in its grammar, with nesting of at most 64; a field that is asked for and occurs twice, or
// is neither a string, a number nor null, is wrong. Not checked: UTF-8 inside strings, which come as they are.
// A \u escape that is half of a surrogate pair becomes U+FFFD, as in every decoder that survives it.
std::string read_json_fields(std::string_view line, std::span<JsonField> fields);

// Appends `text` (valid UTF-8) as a JSON string with its quotes, without escaping what need not be. Control
// characters and U+007F are escaped, and U+2028 and U+2029, which some line readers take for ends of line.
void append_json_string(std::string_view text, std::string& out);

}  // namespace cachalot
