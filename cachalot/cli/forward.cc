// cachalot forward: one forward (and backward) pass, every intermediate result to a file, to compare
// implementations.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/json.h"
#include "cli/commands.h"
#include "cli/common_options.h"
#include "model/forward_results.h"

namespace cachalot::cli {

namespace {

struct Options {
  std::string model, tokens, out, routing, device = "cpu", precision = "f32";
  double lambda = 0.3, alpha = 0;
  int threads = 0;
  bool gradients = false, drop_mtp = false;
};

void run(const Options& o) {
  ForwardRequest request{.tokens = {},
                         .batch = 0,
                         .length = 0,
                         .gradients = o.gradients,
                         .mtp_lambda = o.lambda,
                         .balance_alpha = o.alpha,
                         .routing = {}};
  read_tokens(o.tokens, request);
  if (!o.routing.empty()) read_routing(o.routing, request);
  auto device = open_device(o.device, {.threads = o.threads});
  const ForwardResults results =
      run_forward(*device, o.model, parse_precision(o.precision), o.drop_mtp, request);
  write_results(o.out, results);
  const Json json{{"loss_main", results.loss_main}, {"loss_mtp", results.loss_mtp},
                  {"mtp_lambda", o.lambda},         {"loss_balance", results.loss_balance},
                  {"balance_alpha", o.alpha},       {"loss_total", results.loss_total}};
  fmt::print("{}\n", json.dump(1));
}

}  // namespace

void add_forward(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* c = app.add_subcommand("forward", "run tokens through a model and write every intermediate result");
  c->add_option("--model", o->model, "model directory or run directory")->required();
  c->add_option("--tokens", o->tokens, "safetensors file with tokens, I32 [B, T + 1]")->required();
  c->add_option("--out", o->out, "safetensors file to write: logits, hidden.N, router.N.*, mtp.K.*")
      ->required()
      ->check(file_in_a_folder());
  c->add_flag("--grad", o->gradients, "run the backward too and write grad.<name>");
  c->add_option("--routing", o->routing, "follow the expert choices (router.N.indices) of this file");
  c->add_option("--mtp-lambda", o->lambda, "weight of the MTP losses")
      ->check(at_least(0))
      ->capture_default_str();
  c->add_option("--balance-alpha", o->alpha, "weight of the sequence-wise balance loss")
      ->check(at_least(0))
      ->capture_default_str();
  c->add_option("--precision", o->precision, kPrecisions)->capture_default_str();
  add_device(*c, o->device);
  add_threads(*c, o->threads);
  c->add_flag("--drop-mtp", o->drop_mtp, "leave the MTP layers out");
  c->callback([o] { run(*o); });
}

}  // namespace cachalot::cli
