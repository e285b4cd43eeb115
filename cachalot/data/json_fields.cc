#include "data/json_fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/error.h"
#include "base/text.h"

namespace cachalot {

std::string in_quotes(std::string_view text) {
  constexpr size_t kMost = 60;
  if (text.size() <= kMost) return fmt::format("\"{}\"", utf8_lossy(text));
  return fmt::format("\"{}...\"", utf8_lossy(text.substr(0, utf8_complete_prefix(text.substr(0, kMost)))));
}

void throw_kind(const std::string& path, const Json& value, std::string_view expected) {
  const std::string shown = value.is_object()   ? "an object"
                            : value.is_array()  ? "an array"
                            : value.is_string() ? in_quotes(value.get_ref<const std::string&>())
                                                : value.dump();
  throw Error(fmt::format("{} is {}; it must be {}", path, shown, expected));
}

JsonObject::JsonObject(const Json& value, std::string path) : value_(&value), path_(std::move(path)) {
  if (!value.is_object()) throw_kind(path_, value, "an object");
}

std::string JsonObject::path(std::string_view key) const {
  // The path of a whole file is its name alone.
  return fmt::format("{}{}{}", path_, path_.find(": ") == std::string::npos ? ": " : ".", key);
}

const Json* JsonObject::find(std::string_view key) const {
  const auto& members = value_->get_ref<const Json::object_t&>();
  const auto at = std::find_if(members.begin(), members.end(), [&](const auto& m) { return m.first == key; });
  return at == members.end() || at->second.is_null() ? nullptr : &at->second;
}

const Json& JsonObject::need(std::string_view key) const {
  if (const Json* value = find(key)) return *value;
  throw Error(fmt::format("{} is missing", path(key)));
}

std::string_view JsonObject::need_string(std::string_view key) const {
  const Json& value = need(key);
  if (!value.is_string()) throw_kind(path(key), value, "a string");
  return value.get_ref<const std::string&>();
}

bool JsonObject::boolean(std::string_view key, bool otherwise) const {
  const Json* value = find(key);
  if (!value) return otherwise;
  if (!value->is_boolean()) throw_kind(path(key), *value, "true or false");
  return value->get<bool>();
}

void JsonObject::refuse_unknown(std::initializer_list<std::string_view> known) const {
  std::vector<std::string> names(known.begin(), known.end());
  for (const auto& [key, value] : value_->items()) {
    if (std::find(names.begin(), names.end(), key) != names.end()) continue;
    const std::string near = nearest(key, names);
    throw Error(fmt::format("{}: unknown field {}{}", path_, in_quotes(key),
                            near.empty() ? "" : fmt::format(" (did you mean \"{}\"?)", near)))
        .hint("a field that cachalot does not know may change the ids, so it is refused");
  }
}

void JsonObject::refuse_other(std::string_view key, std::string_view harmless) const {
  const Json* value = find(key);
  if (!value || *value == parse_json(harmless, "built in")) return;
  std::string text = value->dump();
  throw Error(fmt::format("{} is {}; cachalot supports only null{}", path(key), in_quotes(text),
                          harmless == "null" ? "" : fmt::format(" or {}", harmless)));
}

}  // namespace cachalot
