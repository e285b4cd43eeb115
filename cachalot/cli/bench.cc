// cachalot bench: what this machine can do, and how much of it cachalot uses.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "backend/ceilings.h"
#include "base/cpu.h"
#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "base/text.h"
#include "cli/bench_kernels.h"
#include "cli/bench_ops.h"
#include "cli/bench_steps.h"
#include "cli/commands.h"
#include "cli/common_options.h"
#include "cli/terminal.h"
#include "config/params.h"
#include "nn/recipe.h"

namespace cachalot::cli {

namespace {

const std::vector<std::string> kParts{"gemm",    "ops",      "products", "attention", "train",
                                      "forward", "backward", "layer",    "prefill",   "decode"};
// For models too large for an optimizer beside them, or at V3's sizes whatever the model: only where asked
// for.
const std::vector<std::string> kAskedFor{"ops", "products", "attention", "forward", "backward", "layer"};
constexpr int64_t kCeilingBytes = int64_t(256) << 20;

struct Options {
  std::vector<std::string> parts;
  std::string config = "configs/cpu-100m.json", device = "cpu", json;
  int threads = 0;
  int64_t batch = 0, seq_len = 0, lines = 12, ranks = 1;
  GenerateBench generate;
  double seconds = 3;

  bool wants(const std::string& part) const {
    const auto holds = [&](const std::vector<std::string>& list) {
      return std::find(list.begin(), list.end(), part) != list.end();
    };
    return parts.empty() ? !holds(kAskedFor) : holds(parts);
  }
};

std::string flops(double per_second) {
  return per_second >= 1e12 ? fmt::format("{:.2f} TFLOP/s", per_second * 1e-12)
                            : fmt::format("{:.1f} GFLOP/s", per_second * 1e-9);
}
std::string moved(double per_second) {
  return per_second >= 1e12 ? fmt::format("{:.2f} TB/s", per_second * 1e-12)
                            : fmt::format("{:.1f} GB/s", per_second * 1e-9);
}

double product_ceiling(const Ceilings& c, DType dtype) {
  return dtype == DType::f32 ? c.f32_flops : c.bf16_flops;
}

Json show_ceilings(const Ceilings& c) {
  fmt::print("ceilings   products f32 {}, bf16 {}\n           memory, {}: reading {}, copying {}\n",
             flops(c.f32_flops), flops(c.bf16_flops), human_bytes(double(c.bytes)), moved(c.read_bytes),
             moved(c.copy_bytes));
  return {{"f32_flops_per_second", c.f32_flops},
          {"bf16_flops_per_second", c.bf16_flops},
          {"read_bytes_per_second", c.read_bytes},
          {"copy_bytes_per_second", c.copy_bytes},
          {"working_set_bytes", c.bytes}};
}

Json bench_gemm(Device& device, const Ceilings& c, double seconds) {
  Json rows = Json::array();
  fmt::print("\nproducts   C = A B^T, M = N = K\n");
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const int64_t n : {256, 512, 1024, 2048}) {
      const double rate = 2.0 * double(n * n * n) / time_gemm(device, dtype, n, n, n, seconds / 4);
      const double share = rate / product_ceiling(c, dtype);
      fmt::print("  {:<5}{:>6}  {:>14} {:>5.0f} % of the ceiling\n", name_of(dtype), n, flops(rate),
                 100 * share);
      rows.push_back({{"format", name_of(dtype)}, {"n", n}, {"flops_per_second", rate}, {"share", share}});
    }
  return rows;
}

Json show_ops(Device& device, const Ceilings& c, int64_t tokens) {
  Json rows = Json::array();
  fmt::print(
      "\nops        cold cache, median of 20; beside copying {}, and as many bytes as the operation moves\n",
      human_bytes(double(c.bytes)));
  bench_ops(device, tokens, [&](const OpTime& t) {
    fmt::print("  {:<20} {:<48} {:>10.1f} us", t.op, t.shape, 1e6 * t.seconds);
    if (t.bytes > 0)
      fmt::print(" {:>14} {:>5.0f} % {:>5.0f} %", moved(t.bytes / t.seconds),
                 100 * t.bytes / t.seconds / c.copy_bytes, 100 * t.copy_seconds / t.seconds);
    fmt::print("\n");
    std::fflush(stdout);
    rows.push_back({{"op", t.op},
                    {"shape", t.shape},
                    {"seconds", t.seconds},
                    {"bytes", t.bytes},
                    {"share_of_copy", t.bytes / t.seconds / c.copy_bytes},
                    {"share_of_equal_copy", t.copy_seconds / t.seconds}});
  });
  return rows;
}

// Products and attention: what they compute and what they move a second.
Json show_kernels(const char* title, const std::function<void(const ShowTime&)>& bench) {
  Json rows = Json::array();
  fmt::print("\n{:<10} cold cache, median of 20; \"graph\": without the launch\n", title);
  bench([&](const OpTime& t) {
    fmt::print("  {:<22} {:<36} {:<5} {:>10.1f} us {:>16} {:>12}\n", t.op, t.shape, t.graph ? "graph" : "",
               1e6 * t.seconds, flops(t.flops / t.seconds), t.bytes > 0 ? moved(t.bytes / t.seconds) : "");
    std::fflush(stdout);
    rows.push_back({{"op", t.op},
                    {"shape", t.shape},
                    {"graph", t.graph},
                    {"seconds", t.seconds},
                    {"flops", t.flops},
                    {"bytes", t.bytes}});
  });
  return rows;
}

// How near an operation is to the limit that binds it: few rows against many weights are bound by memory.
struct Rate {
  std::string text;
  double share = 0;
};
Rate rate_of(const ProfileLine& line, const Ceilings& c, DType dtype) {
  const double by_flops = line.cost.flops / line.seconds, by_bytes = line.cost.bytes / line.seconds;
  const double of_flops = by_flops / product_ceiling(c, dtype);
  const double of_bytes = by_bytes / (line.cost.kind == CostKind::memory ? c.copy_bytes : c.read_bytes);
  return of_flops > of_bytes ? Rate{flops(by_flops), of_flops} : Rate{moved(by_bytes), of_bytes};
}

void print_profile(const Profile& profile, const Ceilings& c, DType dtype, int64_t most) {
  const double all = profile.seconds();
  const auto print = [&](const ProfileLine& line, const std::string& name) {
    const Rate rate = rate_of(line, c, dtype);
    fmt::print("  {:<20} {:<44} {:>5} {:>10.3f} {:>5.1f} % {:>14} {:>5.0f} %\n", name, line.cost.shape,
               line.calls, 1e3 * line.seconds, 100 * line.seconds / all, rate.text, 100 * rate.share);
  };
  fmt::print("  {:<20} {:<44} {:>5} {:>10} {:>7} {:>14} {:>7}\n", "operation, alone", "shape", "calls", "ms",
             "share", "rate", "of limit");
  int64_t shown = 0;
  ProfileLine rest{.op = ""};
  for (const ProfileLine& line : profile.lines()) {
    if (shown++ < most) {
      print(line, line.op);
      continue;
    }
    rest.calls += line.calls, rest.seconds += line.seconds;
    rest.cost.flops += line.cost.flops, rest.cost.bytes += line.cost.bytes;
  }
  if (rest.calls) print(rest, fmt::format("{} more", shown - most));
}

Json profile_json(const Profile& profile) {
  Json rows = Json::array();
  for (const ProfileLine& line : profile.lines())
    rows.push_back({{"op", line.op},
                    {"shape", line.cost.shape},
                    {"calls", line.calls},
                    {"seconds", line.seconds},
                    {"flops", line.cost.flops},
                    {"bytes", line.cost.bytes}});
  return rows;
}

// A step that is bound by products: its rate beside the rate of its own products run alone.
Json show_step(const char* name, const StepTime& t, const Ceilings& c, DType dtype, int64_t lines) {
  const ProfileLine products = t.profile.total(CostKind::product),
                    attention = t.profile.total(CostKind::attention);
  const double rate = (products.cost.flops + attention.cost.flops) / t.seconds,
               product_rate = products.cost.flops / products.seconds;
  fmt::print("\n{:<10} {} tokens in {:.4g} s ({} steps measured; the fastest {:.4g} s): {:.1f} tokens/s\n",
             name, t.tokens, t.seconds, t.repeats, t.least, double(t.tokens) / t.seconds);
  fmt::print("           {}: {:.0f} % of the rate of its own products ({})\n", flops(rate),
             100 * rate / product_rate, flops(product_rate));
  if (t.memory) fmt::print("           takes {} of memory\n", human_bytes(double(t.memory)));
  print_profile(t.profile, c, dtype, lines);
  return {{"tokens", t.tokens},
          {"seconds", t.seconds},
          {"fastest_seconds", t.least},
          {"memory_bytes", t.memory},
          {"steps", t.repeats},
          {"tokens_per_second", double(t.tokens) / t.seconds},
          {"flops_per_second", rate},
          {"product_flops_per_second", product_rate},
          {"share_of_products", rate / product_rate},
          {"operations", profile_json(t.profile)}};
}

// A decoding step is bound by what it reads: weights of the experts in use and the cache.
Json show_decode(const StepTime& t, Device& device, const Ceilings& c, DType dtype, int64_t lines) {
  double bytes = 0;
  for (const ProfileLine& line : t.profile.lines())
    if (line.cost.kind != CostKind::memory) bytes += line.cost.bytes;
  const double rate = bytes / t.seconds;
  const double limit = measure_ceilings(device, int64_t(bytes), 0.3).read_bytes;
  fmt::print("\n{:<10} a step of {} tokens in {:.3f} ms: {:.1f} tokens/s\n", "decode", t.tokens,
             1e3 * t.seconds, double(t.tokens) / t.seconds);
  fmt::print("           reads {} at {}: {:.0f} % of {} measured over as much memory\n", human_bytes(bytes),
             moved(rate), 100 * rate / limit, moved(limit));
  print_profile(t.profile, c, dtype, lines);
  return {{"tokens", t.tokens},
          {"seconds", t.seconds},
          {"tokens_per_second", double(t.tokens) / t.seconds},
          {"bytes", bytes},
          {"bytes_per_second", rate},
          {"read_bytes_per_second_at_this_size", limit},
          {"share_of_reading", rate / limit},
          {"operations", profile_json(t.profile)}};
}

// The last layer: forward; with a backward that overwrites gradients; with one that adds to them.
Json show_layer(Device& device, const ModelConfig& model, const TrainSection& train, const Ceilings& c,
                DType dtype, const Options& o) {
  if (model.n_routed_experts % o.ranks != 0)
    throw Error(fmt::format("{} experts do not go evenly to {} ranks", model.n_routed_experts, o.ranks))
        .hint("--ranks with a number that divides n_routed_experts");
  fmt::print("\nlayer      rank 1 of {}: {} experts, {} rows for them\n", o.ranks,
             model.n_routed_experts / o.ranks, train.tokens_per_step() * model.num_experts_per_tok);
  Json report{{"ranks", o.ranks}};
  for (const auto& [name, pass] : {std::pair{"forward", LayerPass::forward},
                                   {"backward", LayerPass::overwriting},
                                   {"adding", LayerPass::adding}}) {
    report[name] =
        show_step(name, bench_layer(device, model, train, o.ranks, pass, o.seconds), c, dtype, o.lines);
    std::fflush(stdout);
  }
  return report;
}

void run(const Options& o) {
  for (const std::string& part : o.parts)
    if (std::find(kParts.begin(), kParts.end(), part) == kParts.end()) {
      const std::string close = nearest(part, kParts);
      throw Error(fmt::format("bench has no part \"{}\"", part))
          .hint(close.empty() ? fmt::format("{}", fmt::join(kParts, ", ")) : "did you mean " + close + "?");
    }
  if (o.config == Options{}.config && !std::filesystem::exists(o.config))
    throw Error(fmt::format("{}, which is measured unless --config names another, is not below this folder",
                            o.config))
        .hint("cd to the folder of cachalot's sources, or give --config CONFIG");
  RunConfig config = load_run_config(o.config, {});
  config.train.precision = o.generate.precision;
  if (o.batch) config.train.batch = o.batch, config.train.micro_batch = 0;
  if (o.seq_len) config.train.seq_len = o.seq_len;
  const int64_t vocab = config.tokenizer.vocab_size;
  const ModelConfig model = resolve_model(config, vocab, 0, o.config);
  const DType dtype = Recipe::of(parse_precision(o.generate.precision)).act;

  const auto device = open_device(o.device, {.threads = o.threads});
  fmt::print("machine    {}, {}\n", device->name(), cpu_model_name());
  fmt::print("model      {}: {} parameters, {} active a token; {}\n", o.config,
             human_count(double(parameter_count(parameter_table(model)))),
             human_count(double(active_parameter_count(model))), o.generate.precision);
  const Ceilings ceilings = measure_ceilings(*device, kCeilingBytes, std::min(1.0, o.seconds / 3));
  Json report{{"device", device->name()},
              {"cpu", cpu_model_name()},
              {"config", o.config},
              {"precision", o.generate.precision},
              {"time", int64_t(std::time(nullptr))},
              {"ceilings", show_ceilings(ceilings)}};
  std::fflush(stdout);
  if (o.wants("gemm")) report["gemm"] = bench_gemm(*device, ceilings, o.seconds);
  std::fflush(stdout);
  if (o.wants("ops")) report["ops"] = show_ops(*device, ceilings, o.seq_len ? o.seq_len : 4096);
  if (o.wants("products"))
    report["products"] = show_kernels("products", [&](const ShowTime& show) {
      bench_products(*device, o.seq_len ? o.seq_len : 4096, show);
    });
  if (o.wants("attention"))
    report["attention"] = show_kernels("attention", [&](const ShowTime& show) {
      bench_attention(*device, o.seq_len ? o.seq_len : 4096, show);
    });
  if (o.wants("train"))
    report["train"] =
        show_step("train", bench_train(*device, model, config.train, o.seconds), ceilings, dtype, o.lines);
  std::fflush(stdout);
  for (const auto& [name, pass] : {std::pair{"forward", Pass::forward}, {"backward", Pass::forward_backward}})
    if (o.wants(name))
      report[name] = show_step(name, bench_pass(*device, model, config.train, pass, o.seconds), ceilings,
                               dtype, o.lines);
  if (o.wants("layer")) report["layer"] = show_layer(*device, model, config.train, ceilings, dtype, o);
  std::fflush(stdout);
  if (o.wants("prefill"))
    report["prefill"] =
        show_step("prefill", bench_prefill(*device, model, o.generate, o.seconds), ceilings, dtype, o.lines);
  std::fflush(stdout);
  if (o.wants("decode"))
    report["decode"] =
        show_decode(bench_decode(*device, model, o.generate, o.seconds), *device, ceilings, dtype, o.lines);
  if (!o.json.empty()) write_file_atomic(o.json, report.dump(1) + "\n");
}

}  // namespace

void add_bench(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* c = app.add_subcommand("bench", "measure this machine and how much of it cachalot uses");
  c->add_option(
      "PART", o->parts,
      "gemm, train, prefill, decode [these four]; ops, products, attention: single operations at "
      "DeepSeek-V3's "
      "sizes; forward, backward (a forward too): without an optimizer; layer: the last layer alone");
  c->add_option("--config", o->config, "training configuration whose model and batch are measured")
      ->capture_default_str();
  c->add_option("--precision", o->generate.precision, kPrecisions)->capture_default_str();
  add_device(*c, o->device);
  add_threads(*c, o->threads);
  c->add_option("--batch", o->batch, "train: sequences of a step [of the configuration]")
      ->check(in_range(1, 1 << 20));
  c->add_option("--seq-len", o->seq_len,
                "train: tokens of a sequence [of the configuration]; ops, products, attention: rows [4096]")
      ->check(in_range(1, 1 << 20));
  c->add_option("--ranks", o->ranks, "layer: expert-parallel ranks, each with its share of the experts")
      ->check(in_range(1, 1 << 16))
      ->capture_default_str();
  c->add_option("--context", o->generate.context, "prefill, decode: tokens of the prompt")
      ->check(in_range(1, 1 << 20))
      ->capture_default_str();
  c->add_option("--sequences", o->generate.sequences, "decode: sequences of a step")
      ->check(in_range(1, 1 << 16))
      ->capture_default_str();
  c->add_option("--new-tokens", o->generate.new_tokens, "decode: tokens of a sequence, one run")
      ->check(in_range(2, 1 << 20))
      ->capture_default_str();
  c->add_option("--speculate", o->generate.speculate, "decode: MTP depths that draft")
      ->check(at_least(0))
      ->capture_default_str();
  c->add_option("--cache", o->generate.cache, "prefill, decode: latents in bf16 or fp8")
      ->capture_default_str();
  c->add_option("--temperature", o->generate.sampling.temperature,
                "decode: of the draws; 0: the likeliest token")
      ->check(at_least(0))
      ->capture_default_str();
  c->add_option("--top-p", o->generate.sampling.top_p, "decode: only the likeliest tokens of this share")
      ->check(in_range(0, 1))
      ->capture_default_str();
  c->add_option("--top-k", o->generate.sampling.top_k, "decode: only the k likeliest tokens; 0: all")
      ->check(at_least(0))
      ->capture_default_str();
  c->add_flag("--batch-invariant", o->generate.batch_invariant,
              "prefill, decode: bits that no neighbour changes");
  c->add_option("--seconds", o->seconds, "at least so long for each part")
      ->check(in_range(0.01, 3600.0))
      ->capture_default_str();
  c->add_option("--lines", o->lines, "operations shown; 0: their sum only")
      ->check(in_range(0, 10000))
      ->capture_default_str();
  c->add_option("--json", o->json, "write everything, all operations included, to this file")
      ->check(file_in_a_folder());
  c->callback([o] { run(*o); });
}

}  // namespace cachalot::cli
