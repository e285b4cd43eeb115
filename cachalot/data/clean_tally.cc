#include "data/clean_tally.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <tuple>

namespace cachalot {

namespace {

Json json_of(const Tally& tally) { return Json{{"documents", tally.documents}, {"bytes", tally.bytes}}; }
Tally tally_of(const Json& json) {
  return {.documents = json.at("documents").get<int64_t>(), .bytes = json.at("bytes").get<int64_t>()};
}

Json json_of(const std::map<std::string, Tally>& tallies) {
  Json object = Json::object();
  for (const auto& [name, tally] : tallies) object[name] = json_of(tally);
  return object;
}
std::map<std::string, Tally> tallies_of(const Json& json) {
  std::map<std::string, Tally> tallies;
  for (const auto& [name, tally] : json.items()) tallies[name] = tally_of(tally);
  return tallies;
}

void add_all(std::map<std::string, Tally>& to, const std::map<std::string, Tally>& from) {
  for (const auto& [name, tally] : from) to[name].add(tally);
}

}  // namespace

void CleanTally::sample(const std::string& reason, DropSample sample) {
  auto& list = samples[reason];
  const auto before = [](const DropSample& a, const DropSample& b) {
    return std::tie(a.order, a.id, a.source) < std::tie(b.order, b.id, b.source);
  };
  if (list.size() == kSamples && !before(sample, list.back())) return;
  list.insert(std::upper_bound(list.begin(), list.end(), sample, before), std::move(sample));
  if (list.size() > kSamples) list.pop_back();
}

void CleanTally::add(const CleanTally& o) {
  read.add(o.read);
  kept.add(o.kept);
  add_all(dropped, o.dropped);
  add_all(parts_read, o.parts_read);
  add_all(parts_kept, o.parts_kept);
  add_all(languages_kept, o.languages_kept);
  add_all(encodings, o.encodings);
  add_all(evaluation, o.evaluation);
  lines_removed += o.lines_removed;
  tidied += o.tidied;
  repaired += o.repaired;
  for (const auto& [reason, list] : o.samples)
    for (const DropSample& s : list) sample(reason, s);
  problems.insert(problems.end(), o.problems.begin(), o.problems.end());
}

Json tally_json(const CleanTally& tally) {
  Json json = Json::object();
  json["read"] = json_of(tally.read);
  json["kept"] = json_of(tally.kept);
  json["dropped"] = json_of(tally.dropped);
  json["parts_read"] = json_of(tally.parts_read);
  json["parts_kept"] = json_of(tally.parts_kept);
  json["languages_kept"] = json_of(tally.languages_kept);
  json["encodings"] = json_of(tally.encodings);
  json["evaluation"] = json_of(tally.evaluation);
  json["lines_removed"] = tally.lines_removed;
  json["tidied"] = tally.tidied;
  json["repaired"] = tally.repaired;
  Json samples = Json::object();
  for (const auto& [reason, list] : tally.samples) {
    Json& array = samples[reason] = Json::array();
    for (const DropSample& s : list) {
      Json item{{"order", s.order}, {"id", s.id},   {"source", s.source},
                {"part", s.part},   {"why", s.why}, {"excerpt", s.excerpt}};
      if (!s.of.empty()) {
        item["of"] = s.of;
        item["of_excerpt"] = s.of_excerpt;
      }
      array.push_back(std::move(item));
    }
  }
  json["samples"] = std::move(samples);
  json["problems"] = tally.problems;
  return json;
}

CleanTally read_tally(const Json& json) {
  CleanTally tally;
  tally.read = tally_of(json.at("read"));
  tally.kept = tally_of(json.at("kept"));
  tally.dropped = tallies_of(json.at("dropped"));
  tally.parts_read = tallies_of(json.at("parts_read"));
  tally.parts_kept = tallies_of(json.at("parts_kept"));
  tally.languages_kept = tallies_of(json.at("languages_kept"));
  tally.encodings = tallies_of(json.at("encodings"));
  tally.evaluation = tallies_of(json.at("evaluation"));
  tally.lines_removed = json.at("lines_removed").get<int64_t>();
  tally.tidied = json.at("tidied").get<int64_t>();
  tally.repaired = json.at("repaired").get<int64_t>();
  for (const auto& [reason, list] : json.at("samples").items())
    for (const Json& s : list)
      tally.samples[reason].push_back({.order = s.at("order").get<uint64_t>(),
                                       .id = s.at("id").get<std::string>(),
                                       .source = s.at("source").get<std::string>(),
                                       .part = s.at("part").get<std::string>(),
                                       .why = s.at("why").get<std::string>(),
                                       .excerpt = s.at("excerpt").get<std::string>(),
                                       .of = s.value("of", std::string()),
                                       .of_excerpt = s.value("of_excerpt", std::string())});
  tally.problems = json.at("problems").get<std::vector<std::string>>();
  return tally;
}

std::string excerpt(std::string_view text, size_t begin, size_t bytes) {
  while (begin > 0 && begin < text.size() && (uint8_t(text[begin]) & 0xC0) == 0x80) --begin;
  begin = std::min(begin, text.size());
  size_t end = std::min(begin + bytes, text.size());
  while (end < text.size() && end > begin && (uint8_t(text[end]) & 0xC0) == 0x80) --end;
  return std::string(text.substr(begin, end - begin));
}

}  // namespace cachalot
