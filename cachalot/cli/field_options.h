// Options that a struct of fields brings (config/fields.h), under their dotted keys: --train.lr 1e-4.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

namespace CLI {
class App;
}
namespace cachalot::fields {
struct Line;
}

namespace cachalot::cli {

// The texts given, by dotted key; must outlive the command.
using FieldTexts = std::map<std::string, std::string>;

// Adds one option. `group` heads it in --help; "": it is hidden.
void add_field_option(CLI::App& command, const fields::Line& line, FieldTexts& texts,
                      const std::string& group);

// Those of the command line in the order given, so that the last of two wins.
std::vector<std::pair<std::string, std::string>> given_fields(const CLI::App& command,
                                                              const FieldTexts& texts);

}  // namespace cachalot::cli
