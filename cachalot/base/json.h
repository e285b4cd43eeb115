// JSON from outside: nlohmann's type behind one strict parser. Headers that only name the type include this;
// the implementation header is included by json.cc and by the .cc files that walk values.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace cachalot {

using Json = nlohmann::ordered_json;  // keeps the order of keys: what we write back reads like what we got

// Parses one JSON value. Refuses (Error naming `what`, usually the file) bad syntax, bytes after the value,
// duplicate keys, invalid UTF-8 and nesting deeper than 64.
Json parse_json(std::string_view text, std::string_view what);
Json read_json_file(const std::string& path);

// "string", "object", ... as users call it, for messages.
std::string json_kind(const Json& value);

}  // namespace cachalot
