#include "cli/unknown_option.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "base/error.h"
#include "base/text.h"

namespace cachalot::cli {

void refuse_unknown_options(const CLI::App& command) {
  if (command.remaining().empty()) return;
  const std::string extra = command.remaining().front(), name = extra.substr(0, extra.find('='));
  std::vector<std::string> known;
  for (const CLI::Option* option : command.get_options())
    if (!option->get_group().empty()) known.push_back(option->get_name());  // else it is hidden
  std::string close;
  if (name.starts_with("--") && name.size() > 2)  // a word on its own is the end of no key
    for (const std::string& option : known)
      if (option.ends_with("." + name.substr(2)) && (close.empty() || option.size() < close.size()))
        close = option;
  if (close.empty()) close = nearest(name, known);
  throw Error(fmt::format("cachalot {} does not know {}", command.get_name(), extra))
      .hint(close.empty() ? fmt::format("cachalot {} --help", command.get_name())
                          : fmt::format("did you mean {}?", close));
}

}  // namespace cachalot::cli
