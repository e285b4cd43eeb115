// cachalot tokenizer bench.
#pragma once

namespace CLI {
class App;
}

namespace cachalot::cli {

void add_tokenizer_bench(CLI::App& group);

}  // namespace cachalot::cli
