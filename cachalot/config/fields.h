// A struct lists its fields once, in a `visit`:
//
//   struct Shape {
//     int64_t width = 4;
//     std::string name;
//     template <class V> void visit(V& v) {
//       v("width", width, "D: how wide");
//       v("name", name, "what it is called");
//     }
//   };
//
// and gets from it JSON in and out, dotted overrides ("--model.width 8") and help text. Field types: bool,
// int64_t, double, std::string, std::vector of these, std::optional of these (null = empty), and structs with
// a visit of their own (nested objects).
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "base/json.h"

namespace cachalot {

namespace fields {

struct NoVisit {
  template <class T> void operator()(const char*, T&, const char*) {}
};
template <class T> concept Struct = requires(T t, NoVisit v) { t.visit(v); };

// Throw Error naming `where` (file and dotted key), the value and what was expected.
void assign(bool& field, const Json& value, const std::string& where);
void assign(int64_t& field, const Json& value, const std::string& where);  // 3 and 3.0, not 3.5
void assign(double& field, const Json& value, const std::string& where);
void assign(std::string& field, const Json& value, const std::string& where);
[[noreturn]] void wrong_kind(const Json& value, const std::string& where, const char* expected);
// Throws Error for the first key of `value` that is not in `known`, naming the nearest known one.
void refuse_unknown(const Json& value, const std::vector<std::string>& known, const std::string& where);

template <class T> struct is_optional : std::false_type {};
template <class T> struct is_optional<std::optional<T>> : std::true_type {};
template <class T> struct is_vector : std::false_type {};
template <class T> struct is_vector<std::vector<T>> : std::true_type {};

template <class T> void read(T& object, const Json& value, const std::string& where);

struct Reader {
  const Json& object;
  const std::string& where;
  std::vector<std::string> known;
  template <class T> void operator()(const char* key, T& field, const char*) {
    known.push_back(key);
    if (const auto it = object.find(key); it != object.end()) read(field, *it, where + key);
  }
};

// Keys that are absent leave their field as it is. `where` is a prefix for messages ("config.json: ").
template <class T> void read(T& field, const Json& value, const std::string& where) {
  if constexpr (Struct<T>) {
    if (!value.is_object()) wrong_kind(value, where, "an object");
    const std::string prefix = where.empty() || where.ends_with(": ") ? where : where + ".";
    Reader reader{value, prefix, {}};
    field.visit(reader);
    refuse_unknown(value, reader.known, prefix);
  } else if constexpr (is_optional<T>::value) {
    if (value.is_null()) field.reset();
    else read(field.emplace(), value, where);
  } else if constexpr (is_vector<T>::value) {
    if (!value.is_array()) wrong_kind(value, where, "an array");
    field.clear();
    for (size_t i = 0; i < value.size(); ++i) {
      typename T::value_type item{};
      read(item, value[i], where + "[" + std::to_string(i) + "]");
      field.push_back(std::move(item));
    }
  } else {
    assign(field, value, where);
  }
}

template <class T> Json write(T& field);

struct Writer {
  Json object = Json::object();
  template <class T> void operator()(const char* key, T& field, const char*) { object[key] = write(field); }
};

template <class T> Json write(T& field) {
  if constexpr (Struct<T>) {
    Writer writer;
    field.visit(writer);
    return std::move(writer.object);
  } else if constexpr (is_optional<T>::value) {
    return field ? write(*field) : Json(nullptr);
  } else if constexpr (is_vector<T>::value) {
    Json array = Json::array();
    for (auto& item : field) array.push_back(write(item));
    return array;
  } else {
    return Json(field);
  }
}

struct Line {
  std::string key, value, meaning;  // dotted key, default as JSON text
};

struct Lister {
  std::vector<Line>& lines;
  std::string prefix;
  template <class T> void operator()(const char* key, T& field, const char* meaning) {
    if constexpr (Struct<T>) {
      Lister inner{lines, prefix + key + "."};
      field.visit(inner);
    } else {
      lines.push_back({prefix + key, write(field).dump(), meaning});
    }
  }
};

// Puts `text` at the dotted key of a JSON object, creating objects on the way: "1e-4", "true", "[1,2]" become
// what they look like, anything else a string. Use before read(), so that unknown keys are caught there.
void override_key(Json& object, const std::string& dotted_key, const std::string& text);

}  // namespace fields

template <fields::Struct T> void read_fields(T& object, const Json& value, const std::string& file) {
  fields::read(object, value, file.empty() ? "" : file + ": ");
}
template <fields::Struct T> Json write_fields(const T& object) {
  T copy = object;  // visit takes references; nothing is changed
  return fields::write(copy);
}
// Every field with its dotted key, current value and meaning: what --help prints.
template <fields::Struct T>
std::vector<fields::Line> list_fields(const T& object, const std::string& prefix = "") {
  std::vector<fields::Line> lines;
  T copy = object;
  fields::Lister lister{lines, prefix};
  copy.visit(lister);
  return lines;
}

}  // namespace cachalot
