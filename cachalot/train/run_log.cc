#include "train/run_log.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"

namespace cachalot {

namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

// Every number of a line by its path: a, a.0 (in a list), a.b (in an object).
void flatten(const Json& value, const std::string& path, std::map<std::string, double>& out) {
  if (value.is_number()) out[path] = value.get<double>();
  else if (value.is_boolean()) out[path] = value.get<bool>();
  else if (value.is_array())
    for (size_t i = 0; i < value.size(); ++i) flatten(value[i], path + "." + std::to_string(i), out);
  else if (value.is_object())
    for (const auto& [key, inner] : value.items()) {
      if (key != "expert_load") flatten(inner, path.empty() ? key : path + "." + key, out);
    }
}

using Is = bool (*)(const Json&);

bool is_number(const Json& v) { return v.is_number() || v.is_null(); }  // null: it was not finite
template <Is is> bool is_list(const Json& v) { return v.is_array() && std::all_of(v.begin(), v.end(), is); }
template <Is is> bool is_map(const Json& v) { return v.is_object() && std::all_of(v.begin(), v.end(), is); }
constexpr Is kNumbers = is_list<is_number>, kTable = is_list<is_list<is_number>>;
constexpr Is kTables = is_map<is_list<is_list<is_number>>>;

bool lacks_or(const Json& object, const char* key, Is is) { return !object.contains(key) || is(object[key]); }

bool is_step(const Json& line) { return line.contains("step") && line["step"].is_number_integer(); }

bool readable_event(const Json& line) {
  if (!line["event"].is_string()) return false;
  return line["event"] != "expert_load" ||
         (is_step(line) && lacks_or(line, "layers", kNumbers) && lacks_or(line, "counts", kTable) &&
          lacks_or(line, "bias", kTable));
}

bool readable_step(const Json& line) {
  if (!is_step(line)) return false;
  for (const auto& [key, value] : line.items()) {
    const bool list = key == "mtp_loss" || key == "max_vio" || key == "groups_per_token",
               object = key == "held_out" || key == "parts";
    if (list ? !kNumbers(value) : object ? !value.is_object() : value.is_structured()) return false;
  }
  return !line.contains("held_out") || lacks_or(line["held_out"], "expert_load", kTables);
}

}  // namespace

RunLog read_run_log(const std::string& metrics_path) {
  const std::string text = read_file(metrics_path);
  RunLog log;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;  // being written
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    Json json;
    try {
      json = parse_json(line, metrics_path);
    } catch (const Error&) {
      ++log.unreadable;
      continue;
    }
    const bool event = json.is_object() && json.contains("event");
    if (!json.is_object() || !(event ? readable_event(json) : readable_step(json))) {
      ++log.unreadable;
      continue;
    }
    if (event) {
      log.events.push_back(std::move(json));
      continue;
    }
    if (json.contains("held_out") && json["held_out"].contains("expert_load"))
      log.expert_loads.push_back({{"step", json["step"]}, {"sets", json["held_out"]["expert_load"]}});
    std::map<std::string, double> numbers;
    flatten(json, "", numbers);
    for (const auto& [name, number] : numbers) {
      auto& column = log.values[name];
      column.resize(log.step.size(), kNone);
      column.push_back(number);
    }
    log.step.push_back(numbers["step"]);
    log.tokens.push_back(numbers.count("tokens") ? numbers["tokens"] : kNone);
    for (auto& [name, column] : log.values) column.resize(log.step.size(), kNone);
  }
  return log;
}

RunLog::Column RunLog::column(const std::string& name) const {
  Column c;
  const auto found = values.find(name);
  if (found == values.end()) return c;
  for (size_t i = 0; i < step.size(); ++i)
    if (std::isfinite(found->second[i])) c.step.push_back(step[i]), c.value.push_back(found->second[i]);
  return c;
}

double RunLog::last(const std::string& name) const {
  const Column c = column(name);
  return c.value.empty() ? kNone : c.value.back();
}

std::vector<std::string> RunLog::names(const std::string& prefix) const {
  std::vector<std::string> out;
  for (const auto& [name, column] : values)
    if (name.starts_with(prefix)) out.push_back(name);
  std::stable_sort(out.begin(), out.end(),
                   [](const auto& a, const auto& b) { return a.size() < b.size(); });  // 2 before 10
  return out;
}

}  // namespace cachalot
