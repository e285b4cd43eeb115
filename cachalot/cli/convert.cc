// cachalot convert: a model directory from one storage type into another; a run as a model directory.
#include "model/convert.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <iostream>
#include <map>
#include <memory>

#include "base/error.h"
#include "base/progress.h"
#include "base/text.h"
#include "base/thread_pool.h"
#include "cli/commands.h"
#include "cli/common_options.h"
#include "cli/terminal.h"
#include "model/load.h"
#include "train/export.h"

namespace cachalot::cli {

namespace {

struct ConvertCommand {
  ConvertOptions options;
  std::string dtype, scale_fmt, weights = "latest";
  uint64_t max_shard_bytes = kDefaultShardBytes;
  int threads = 0;
};

void run(const ConvertCommand& command) {
  ConvertOptions o = command.options;
  o.storage = command.dtype == "f32" ? DType::f32 : command.dtype == "bf16" ? DType::bf16 : DType::e4m3;
  if (!command.scale_fmt.empty() && o.storage != DType::e4m3)
    throw Error(fmt::format("--scale-fmt {} is given with --dtype {}, which has no scales", command.scale_fmt,
                            command.dtype))
        .hint("--dtype fp8, or leave --scale-fmt out");
  if (!command.scale_fmt.empty())
    o.scale_format = command.scale_fmt == "ue8m0" ? ScaleFormat::power_of_two : ScaleFormat::float32;
  o.max_shard_bytes = int64_t(command.max_shard_bytes);
  ThreadPool pool(command.threads > 0 ? command.threads : available_cpus());
  o.pool = &pool;
  const std::atomic<bool>& stop =
      stop_on_signals("\nstopping: nothing of it stays; once more to stop at once\n");
  const auto start = std::chrono::steady_clock::now();
  const auto seconds = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  if (command.weights != "latest") {
    if (o.drop_mtp)
      throw Error("--drop-mtp is given with --weights " + command.weights)
          .hint("export first, then convert the result with --drop-mtp");
    export_weights({.from = o.from,
                    .to = o.to,
                    .weights = command.weights == "ema" ? ExportWeights::average : ExportWeights::masters,
                    .storage = o.storage,
                    .scale_format = o.scale_format.value_or(ScaleFormat::float32),
                    .overwrite = o.overwrite,
                    .max_shard_bytes = o.max_shard_bytes,
                    .pool = &pool,
                    .stop = &stop});
    fmt::print("{}: the {} of {}, {}\n", o.to, command.weights == "ema" ? "averages" : "master weights",
               checkpoint_of(o.from), human_seconds(seconds()));
    return;
  }
  o.from = resolve_model_directory(o.from);

  std::unique_ptr<Progress> progress;
  o.progress = [&](int64_t bytes, int64_t total, const std::string& tensor) {
    if (!progress) progress = std::make_unique<Progress>(std::cerr, "convert (MB)", total / 1'000'000);
    progress->update(bytes / 1'000'000, tensor);
    if (stop) throw Error(fmt::format("stopped: {} is as it was", o.to));
  };
  const ConvertSummary summary = convert_model(o);
  if (progress) progress->finish();
  fmt::print("{}: {} parameters in {} tensors, {} -> {}, {} file{}, {}\n", o.to,
             human_count(double(summary.parameters)), summary.tensors,
             human_bytes(double(summary.bytes_read)), human_bytes(double(summary.bytes_written)),
             summary.files, summary.files == 1 ? "" : "s", human_seconds(seconds()));
}

}  // namespace

void add_convert(CLI::App& app) {
  auto command = std::make_shared<ConvertCommand>();
  ConvertOptions& o = command->options;
  auto* c = app.add_subcommand("convert", "store a model's weights as F32, BF16 or FP8");
  c->add_option("--from", o.from, "model directory, run, or checkpoint of a run to read")
      ->required()
      ->check(CLI::ExistingDirectory);
  c->add_option("--to", o.to, "model directory to write; appears complete or not at all")->required();
  c->add_option("--dtype", command->dtype,
                "f32; bf16; fp8: linear layers E4M3 in 128 x 128 blocks, the rest BF16")
      ->required()
      ->check(CLI::IsMember({"f32", "bf16", "fp8"}));
  c->add_option("--scale-fmt", command->scale_fmt,
                "FP8 scales: any fp32, or ue8m0, powers of two [the source's, else fp32; with --weights ema "
                "or master fp32]")
      ->check(CLI::IsMember({"fp32", "ue8m0"}));
  c->add_option("--weights", command->weights,
                "of a run: latest; ema: their average (train.ema_decay); master: the FP32 copies")
      ->check(CLI::IsMember({"latest", "ema", "master"}))
      ->capture_default_str();
  c->add_flag("--drop-mtp", o.drop_mtp, "leave the MTP layers out");
  c->add_option("--max-shard-size", command->max_shard_bytes,
                "split larger models, such as 500MB or 5GB (1000-based)")
      ->transform(CLI::AsSizeValue(true))
      ->check(CLI::Range(uint64_t{1}, uint64_t{1} << 60))
      ->default_str("5GB");
  add_threads(*c, command->threads, "; they quantise");
  c->add_flag("--overwrite", o.overwrite, "replace the model directory at --to");
  c->callback([command] { run(*command); });
}

}  // namespace cachalot::cli
