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
    if (json.is_object() && json.contains("event")) {
      log.events.push_back(std::move(json));
      continue;
    }
    if (!json.is_object() || !json.contains("step") || !json["step"].is_number()) {
      ++log.unreadable;
      continue;
    }
    if (json.contains("held_out") && json["held_out"].is_object() && json["held_out"].contains("expert_load"))
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
