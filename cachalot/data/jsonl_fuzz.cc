// libFuzzer: any bytes as a line of JSONL. Whatever base/json.h accepts is accepted and gives the same text;
// what is written is read back by both.
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "base/json.h"
#include "data/encoding.h"
#include "data/jsonl.h"

namespace {

void expect(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view line(reinterpret_cast<const char*>(data), size);
  cachalot::JsonField fields[] = {{.name = "text"}, {.name = "id"}};
  const bool ours = cachalot::read_json_fields(line, fields).empty();
  if (ours && fields[0].found && cachalot::is_utf8(fields[0].value)) {
    std::string again = "{\"text\":";
    cachalot::append_json_string(fields[0].value, again);
    again += "}";
    expect(cachalot::parse_json(again, "again").at("text").get<std::string>() == fields[0].value);
  }
  if (line.find('\0') != std::string_view::npos) expect(!ours);  // and parse_json refuses it, too
  try {
    const cachalot::Json json = cachalot::parse_json(line, "line");
    if (!json.is_object()) {
      expect(!ours);
      return 0;
    }
    const auto usable = [&](const char* name) {
      return !json.contains(name) || json.at(name).is_string() || json.at(name).is_number() ||
             json.at(name).is_null();
    };
    if (!usable("text") || !usable("id")) {
      expect(!ours);
      return 0;
    }
    expect(ours);
    if (json.contains("text") && json.at("text").is_string())
      expect(fields[0].found && fields[0].value == json.at("text").get<std::string>());
  } catch (const cachalot::Error&) {
  }
  return 0;
}
