#include "cli/field_options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "config/fields.h"

namespace cachalot::cli {

void add_field_option(CLI::App& command, const fields::Line& line, FieldTexts& texts,
                      const std::string& group) {
  command.add_option("--" + line.key, texts[line.key], fmt::format("{} [{}]", line.meaning, line.value))
      ->group(group)
      ->type_name("")
      ->allow_extra_args(false)
      ->take_last();
}

std::vector<std::pair<std::string, std::string>> given_fields(const CLI::App& command,
                                                              const FieldTexts& texts) {
  std::vector<std::pair<std::string, std::string>> given;
  for (const CLI::Option* option : command.parse_order())
    if (const auto it = texts.find(option->get_single_name()); it != texts.end())
      given.emplace_back(it->first, it->second);
  return given;
}

}  // namespace cachalot::cli
