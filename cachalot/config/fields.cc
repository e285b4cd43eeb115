#include "config/fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/text.h"

namespace cachalot::fields {

namespace {

// The value as a message shows it: JSON text, cut when it is long.
std::string shown(const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, utf8_complete_prefix(text.substr(0, 57))) + "...";
  return text;
}

}  // namespace

void wrong_kind(const Json& value, const std::string& where, const char* expected) {
  throw Error(fmt::format("{} is {} ({}), not {}", where, shown(value), json_kind(value), expected));
}

void assign(bool& field, const Json& value, const std::string& where) {
  if (!value.is_boolean()) wrong_kind(value, where, "true or false");
  field = value.get<bool>();
}

void assign(int64_t& field, const Json& value, const std::string& where) {
  if (value.is_number_unsigned()) {
    const uint64_t n = value.get<uint64_t>();
    if (n > uint64_t(INT64_MAX)) wrong_kind(value, where, "a whole number below 2^63");
    field = int64_t(n);
  } else if (value.is_number_integer()) {
    field = value.get<int64_t>();
  } else if (value.is_number_float()) {
    const double x = value.get<double>();
    if (std::trunc(x) != x || std::abs(x) > 9007199254740992.0) wrong_kind(value, where, "a whole number");
    field = int64_t(x);
  } else {
    wrong_kind(value, where, "a whole number");
  }
}

void assign(double& field, const Json& value, const std::string& where) {
  if (!value.is_number()) wrong_kind(value, where, "a number");
  field = value.get<double>();
}

void assign(std::string& field, const Json& value, const std::string& where) {
  if (!value.is_string()) wrong_kind(value, where, "a string");
  field = value.get<std::string>();
}

void refuse_unknown(const Json& value, const std::vector<std::string>& known, const std::string& where) {
  for (const auto& item : value.items()) {
    if (std::find(known.begin(), known.end(), item.key()) != known.end()) continue;
    const std::string near = nearest(item.key(), known);
    throw Error(fmt::format("{}{} is not a known key", where, item.key()))
        .hint(near.empty() ? fmt::format("known here: {}", fmt::join(known, ", "))
                           : fmt::format("did you mean {}{}?", where, near));
  }
}

void override_key(Json& object, const std::string& dotted_key, const std::string& text) {
  Json* at = &object;
  for (size_t begin = 0;;) {
    const size_t dot = dotted_key.find('.', begin);
    const std::string key = dotted_key.substr(begin, dot - begin);
    if (key.empty())
      throw Error(fmt::format("\"{}\" is not a dotted key", dotted_key))
          .hint("write it like model.hidden_size");
    if (at->is_null()) *at = Json::object();  // an optional section that was off
    if (!at->is_object())
      throw Error(fmt::format("{}: {} is {}, it has no keys", dotted_key,
                              dotted_key.substr(0, begin ? begin - 1 : 0), json_kind(*at)));
    at = &(*at)[key];
    if (dot == std::string::npos) break;
    begin = dot + 1;
  }
  try {
    *at = parse_json(text, dotted_key);
  } catch (const Error&) {  // not JSON: a plain word, as the shell delivers it
    *at = text;
  }
}

}  // namespace cachalot::fields
