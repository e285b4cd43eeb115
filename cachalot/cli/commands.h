// Every subcommand registers itself; program.cc lists them in the order of --help.
#pragma once

namespace CLI {
class App;
}

namespace cachalot::cli {

void add_tokenizer(CLI::App& app);
void add_pretrain(CLI::App& app);
void add_extend(CLI::App& app);
void add_generate(CLI::App& app);
void add_forward(CLI::App& app);
void add_convert(CLI::App& app);
void add_eval(CLI::App& app);
void add_bench(CLI::App& app);
void add_data(CLI::App& app);
void add_report(CLI::App& app);
void add_doctor(CLI::App& app);

}  // namespace cachalot::cli
