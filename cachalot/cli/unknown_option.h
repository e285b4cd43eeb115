// Commands with dozens of options: which one was meant.
#pragma once

namespace CLI {
class App;
}

namespace cachalot::cli {

// Of a command that allows extras. Error naming the first of them and the nearest option: `--train.lrr` is
// like `--train.lr`, and so is `--lr`.
void refuse_unknown_options(const CLI::App& command);

}  // namespace cachalot::cli
