#include "cli/misuse.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "base/text.h"

namespace cachalot::cli {

namespace {

// "data clean"; "" is the program itself.
std::string path_of(const CLI::App& command) {
  const CLI::App* parent = command.get_parent();
  if (!parent) return "";
  const std::string above = path_of(*parent);
  return (above.empty() ? "" : above + " ") + command.get_name();
}

// The subcommand of a subcommand that the command line reached.
const CLI::App& deepest(const CLI::App& app) {
  for (const CLI::App* command : app.get_subcommands())
    if (!command->get_name().empty()) return deepest(*command);  // else it is a group of options
  return app;
}

void list_options(const CLI::App& command, std::vector<std::string>& names) {
  for (const CLI::Option* option : command.get_options())
    if (!option->get_group().empty()) names.push_back(option->get_name());  // else it is hidden
  for (const CLI::App* group :
       command.get_subcommands([](const CLI::App* a) { return a->get_name().empty(); }))
    list_options(*group, names);
}

// Of option names the nearest to `name`, or "".
std::string nearest_option(const std::string& name, const std::vector<std::string>& known) {
  std::string close;
  if (name.starts_with("--") && name.size() > 2)  // a word on its own is the end of no key
    for (const std::string& option : known)
      if (option.ends_with("." + name.substr(2)) && (close.empty() || option.size() < close.size()))
        close = option;
  return close.empty() ? nearest(name, known) : close;
}

}  // namespace

Error misuse(const CLI::App& app, const CLI::ParseError& e) {
  const CLI::App& command = deepest(app);
  const std::string path = path_of(command);
  const bool top = path.empty();
  std::string hint = fmt::format("cachalot {}--help", top ? "" : path + " ");
  if (command.remaining().empty())
    return Error(top ? e.what() : fmt::format("{}: {}", path, e.what())).hint(hint);

  const std::string extra = command.remaining().front();
  std::vector<std::string> known;
  std::string close;
  if (extra.starts_with('-')) {
    list_options(command, known);
    close = nearest_option(extra.substr(0, extra.find('=')), known);
  } else {
    for (const CLI::App* c : command.get_subcommands([](const CLI::App*) { return true; }))
      known.push_back(c->get_name());
    close = nearest(extra, known);
  }
  if (!close.empty()) hint = fmt::format("did you mean {}?", close);
  return Error(top ? fmt::format("there is no {} {}", extra.starts_with('-') ? "option" : "command", extra)
                   : fmt::format("{} does not know {}", path, extra))
      .hint(hint);
}

}  // namespace cachalot::cli
