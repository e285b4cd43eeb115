// cachalot data clean | tokenize | inspect | needles | needle-contexts: from folders of text to token shards.
#include <CLI/CLI.hpp>

#include "cli/commands.h"
#include "cli/data_commands.h"

namespace cachalot::cli {

void add_data(CLI::App& app) {
  auto* group = app.add_subcommand(
      "data", "from folders of text to training data: filter, remove duplicates, turn into token shards");
  group->require_subcommand(1);
  add_data_clean(*group);
  add_data_tokenize(*group);
  add_data_needles(*group);
  group->footer(  // last: subcommands take over what is there
      "From nothing to shards:\n"
      "  scripts/corpus.sh corpus\n"
      "  cachalot data clean    --input corpus --out cleaned --decontaminate evaluation/\n"
      "  cachalot data tokenize --input cleaned --tokenizer model/ --out shards\n"
      "docs/data.md explains every stage.");
}

}  // namespace cachalot::cli
