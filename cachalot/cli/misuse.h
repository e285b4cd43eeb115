// A command line that does not parse: what is wrong with it and what may have been meant.
#pragma once

#include "base/error.h"

namespace CLI {
class App;
class ParseError;
}  // namespace CLI

namespace cachalot::cli {

// What no command knows is named first, whatever else is wrong: of `--modle x` the error is not that --model
// is missing. `--train.lrr` is like `--train.lr`, and so is `--lr`.
Error misuse(const CLI::App& app, const CLI::ParseError& e);

}  // namespace cachalot::cli
