#include "base/json.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "base/error.h"
#include "base/files.h"

namespace cachalot {

namespace {

constexpr size_t kMaxDepth = 64;

// Builds the value itself, because nlohmann's own builder keeps the last of two equal keys without a word.
class StrictBuilder : public nlohmann::json_sax<Json> {
 public:
  explicit StrictBuilder(std::string_view what) : what_(what) {}
  Json take() { return std::move(root_); }

  bool null() override { return add(nullptr); }
  bool boolean(bool v) override { return add(v); }
  bool number_integer(number_integer_t v) override { return add(v); }
  bool number_unsigned(number_unsigned_t v) override { return add(v); }
  bool number_float(number_float_t v, const string_t&) override { return add(v); }
  bool string(string_t& v) override { return add(std::move(v)); }
  bool binary(binary_t&) override { return false; }
  bool start_object(size_t) override { return open(Json::object()); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    if (!levels_.back().seen.insert(name).second)
      throw Error(fmt::format("{}: the key \"{}\" occurs twice", what_, name));
    levels_.back().key = std::move(name);
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& e) override {
    std::string text = e.what();  // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    if (const size_t cut = text.find("] "); cut != std::string::npos) text = text.substr(cut + 2);
    throw Error(fmt::format("{}: not valid JSON at byte {}: {}", what_, position, text));
  }

 private:
  // Every open container is owned by its level and moved into its parent when it closes: no pointers into
  // values that may move.
  struct Level {
    Json value;
    std::string key;
    std::set<std::string> seen;
  };
  bool add(Json value) {
    if (levels_.empty()) {
      root_ = std::move(value);
    } else if (levels_.back().value.is_array()) {
      levels_.back().value.push_back(std::move(value));
    } else {
      // ordered_json looks for the key linearly; `seen` has proved it new, so append in O(1).
      auto& object = levels_.back().value.get_ref<Json::object_t&>();
      static_cast<std::vector<Json::object_t::value_type>&>(object).emplace_back(
          std::move(levels_.back().key), std::move(value));
    }
    return true;
  }
  bool open(Json container) {
    if (levels_.size() == kMaxDepth) throw Error(fmt::format("{}: nested deeper than {}", what_, kMaxDepth));
    levels_.push_back({std::move(container), {}, {}});
    return true;
  }
  bool close() {
    Json value = std::move(levels_.back().value);
    levels_.pop_back();
    return add(std::move(value));
  }

  std::string_view what_;
  Json root_;
  std::vector<Level> levels_;
};

}  // namespace

Json parse_json(std::string_view text, std::string_view what) {
  // The library takes a NUL for the end of its input and says nothing of what follows.
  if (const size_t at = text.find('\0'); at != std::string_view::npos)
    throw Error(fmt::format("{}: not valid JSON at byte {}: a NUL", what, at + 1));
  StrictBuilder builder(what);
  try {
    Json::sax_parse(text.begin(), text.end(), &builder);
  } catch (const nlohmann::detail::exception& e) {  // e.g. a number out of range
    throw Error(fmt::format("{}: not valid JSON: {}", what, e.what()));
  }
  return builder.take();
}

Json read_json_file(const std::string& path) { return parse_json(read_file(path), path); }

std::string json_kind(const Json& value) {
  if (value.is_boolean()) return "true/false";
  if (value.is_number_integer()) return "whole number";
  if (value.is_number()) return "number";
  return value.type_name();
}

}  // namespace cachalot
