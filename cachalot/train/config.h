// What `cachalot pretrain CONFIG` is told: one JSON file of five sections, every value of which can be
// overridden on the command line by its dotted key (--train.lr 1e-4, --model.hidden_size 64).
//   "model"      the model's hyper-parameters under their Hugging Face names, as in a config.json
//   "tokenizer"  a tokenizer.json, or the size of one to train on the training text
//   "data"       text files and the share of them that is held out, or token shards and their mixture
//   "train"      how it is trained
//   "guard"      what watches the run
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "config/model.h"
#include "train/schedule.h"

namespace cachalot {

namespace fields {
struct Line;  // config/fields.h
}

// The "model" section as it was written: config/model.h parses it, once the vocabulary's size is known.
struct ModelSection {
  std::string json = "{}";
};
// What config/fields.h asks of a field. assign refuses keys that no config.json has.
void assign(ModelSection& field, const Json& value, const std::string& where);
void to_json(Json& json, const ModelSection& section);

struct TokenizerSection {
  std::string path;
  int64_t vocab_size = 0;
  template <class V> void visit(V& v) {
    v("path", path, "a tokenizer.json or the directory of one; empty: train one on the training text");
    v("vocab_size", vocab_size, "tokens of the byte-level BPE that is trained when path is empty");
  }
};

// A number for each of some parts of the data: {"en": 0.7, "code": 0.3}.
struct PartNumbers {
  std::map<std::string, double> of;
};
void assign(PartNumbers& field, const Json& value, const std::string& where);
void to_json(Json& json, const PartNumbers& numbers);

// Paths by name: {"books": ["shards/books"]}; one path may stand without its list.
struct NamedPaths {
  std::map<std::string, std::vector<std::string>> of;
};
void assign(NamedPaths& field, const Json& value, const std::string& where);
void to_json(Json& json, const NamedPaths& paths);

struct DataSection {
  std::vector<std::string> files;
  double held_out = 0.1;
  NamedPaths validation;
  std::vector<std::string> shards;
  PartNumbers weights, epochs;
  double max_epochs = 0;
  std::string packing = "concatenate";
  template <class V> void visit(V& v) {
    v("files", files, "UTF-8 text files, in order: [\"a.txt\",\"b.txt\"]");
    v("held_out", held_out, "share of each file, its end, that is never trained on; 0: none");
    v("validation", validation,
      "more text to score: {\"books\": [\"books/\"]}, each of text files or of folders of shards");
    v("shards", shards, "instead of files: folders that `cachalot data tokenize` wrote");
    v("weights", weights, "of the shards' parts in the mixture: {\"en\": 0.7}; none: by size");
    v("epochs", epochs, "of parts passed that often in the run: {\"code\": 2}; weights share the rest");
    v("max_epochs", max_epochs, "a mixture that passes a part more often is refused; 0: any");
    v("packing", packing, "concatenate, or best_fit: documents are not cut where a row ends");
  }
};

// Quantities that change with the trained tokens (train/schedule.h); a list that is empty leaves the plain
// field.
struct ScheduleSection {
  Pieces lr, batch, bias_gamma, mtp_lambda, balance_alpha;
  template <class V> void visit(V& v) {
    v("lr", lr, "pieces over the trained tokens, instead of lr, min_lr and warmup_steps");
    v("batch", batch, "the same instead of batch; each step's is rounded to whole micro-batches");
    v("bias_gamma", bias_gamma, "the same instead of bias_gamma");
    v("mtp_lambda", mtp_lambda, "the same instead of mtp_lambda");
    v("balance_alpha", balance_alpha, "the same instead of balance_alpha");
  }
};

// Defaults: DeepSeek-V3's where its report gives one (section 4.2).
struct TrainSection {
  int64_t seed = 1;
  int64_t tokens = 0, steps = 0;
  int64_t seq_len = 256, batch = 16, micro_batch = 0;
  double lr = 2.2e-4, min_lr = 2.2e-5;
  int64_t warmup_steps = 100;
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1, clip = 1.0;
  double ema_decay = 0;
  double mtp_lambda = 0.3, balance_alpha = 1e-4, bias_gamma = 0.001;
  ScheduleSection schedule;
  std::string precision = "f32", recompute = "none";
  int64_t threads = 0;
  int64_t eval_every = 0, eval_sequences = 0, save_every = 0, log_every = 10;
  int64_t keep_last = 2, keep_every = 0;
  double price_per_hour = 0, price_per_kwh = 0;
  std::string init_from;

  template <class V> void visit(V& v) {
    v("seed", seed, "of the initial weights and of the order of the data");
    v("tokens", tokens, "budget: trained tokens (1000, 5M), rounded up to whole steps (or give steps)");
    v("steps", steps, "budget: optimizer steps (or give tokens)");
    v("seq_len", seq_len, "T: tokens of a training sequence");
    v("batch", batch, "sequences of one optimizer step");
    v("micro_batch", micro_batch, "sequences that go through the model at once; 0: all of batch");
    v("lr", lr, "peak learning rate");
    v("min_lr", min_lr, "learning rate at the end of the cosine");
    v("warmup_steps", warmup_steps, "steps of linear warm-up from 0");
    v("beta1", beta1, "AdamW: decay of the first moment");
    v("beta2", beta2, "AdamW: decay of the second moment, below 0.998 (moments are BF16)");
    v("eps", eps, "AdamW: added to the root of the second moment");
    v("weight_decay", weight_decay, "AdamW: decay of matrices; norms and router biases have none");
    v("clip", clip, "largest global norm of the gradient; 0: no clipping");
    v("ema_decay", ema_decay, "of an average of the weights in the host's memory, such as 0.999; 0: none");
    v("mtp_lambda", mtp_lambda, "weight of the multi-token prediction losses");
    v("balance_alpha", balance_alpha, "weight of the sequence-wise balance loss");
    v("bias_gamma", bias_gamma, "step of the router biases that balance the experts' load");
    v("schedule", schedule, "");
    v("precision", precision, "f32, bf16 or fp8");
    v("recompute", recompute,
      "in the backward, to the same bits: none, or v3 (norms, MLA's up-projections, SwiGLU)");
    v("threads", threads, "of the cpu device; 0: all that the machine and the container allow");
    v("eval_every", eval_every, "steps between held-out evaluations; 0: at the end only");
    v("eval_sequences", eval_sequences,
      "held-out windows of an evaluation on the way; 0: all, as at the end");
    v("save_every", save_every, "steps between checkpoints; 0: at the end only");
    v("log_every", log_every, "steps between lines when the output is no terminal");
    v("keep_last", keep_last, "checkpoints that are kept: the newest ones");
    v("keep_every", keep_every, "and those of steps that are multiples of it; 0: no others");
    v("price_per_hour", price_per_hour, "of the machine, for the run's cost; 0: unknown");
    v("price_per_kwh", price_per_kwh, "of its energy, where it can be measured; 0: none");
    v("init_from", init_from, "a model directory whose weights training begins with; empty: random ones");
  }

  // What follows from the fields; call validate() first.
  int64_t micro_batch_sequences() const { return micro_batch ? micro_batch : batch; }
  int64_t tokens_per_step() const { return batch * seq_len; }  // without a schedule of the batch
  int64_t total_steps() const;                                 // train/step_plan.h knows more
};

// What watches a run (train/guard.h, train/watchdog.h), and what is done about what it finds: log (tell it
// and go on), skip (leave the update of that step out), rewind (to a checkpoint, and leave the rows out that
// were trained on since), stop.
struct GuardSection {
  static constexpr int64_t kFewestSteps = 32;  // that a spike is judged by

  int64_t window = 128;
  double spike = 12;
  std::string on_spike = "skip", on_not_finite = "skip";
  int64_t most_skipped = 10, most_rewinds = 3, rewind_beyond = 0;
  int64_t collapse_steps = 200;
  double collapse_share = 0.9;
  std::string on_collapse = "log";
  int64_t recheck_every = 1000;
  std::string on_corruption = "retry";
  double hang_seconds = 600, hang_factor = 10;
  template <class V> void visit(V& v) {
    v("window", window, "steps that a spike is compared with, 32 or more");
    v("spike", spike, "deviations from the median, robustly estimated, that make a spike; 0: none does");
    v("on_spike", on_spike, "of the loss or the gradient's norm: log, skip, rewind or stop");
    v("on_not_finite", on_not_finite, "loss or gradient: skip, rewind or stop");
    v("most_skipped", most_skipped, "updates left out in a row that end the run");
    v("most_rewinds", most_rewinds, "rewinds without a checkpoint beyond the trouble: more end the run");
    v("rewind_beyond", rewind_beyond, "a rewind leaves out as many steps' rows behind the bad one, too");
    v("collapse_steps", collapse_steps, "a router that looks collapsed for as many steps is; 0: none is");
    v("collapse_share", collapse_share, "of the largest possible MaxVio that looks collapsed");
    v("on_collapse", on_collapse, "or on an expert without tokens: log, rewind or stop");
    v("recheck_every", recheck_every,
      "steps after which a micro-batch is computed twice and compared; 0: never");
    v("on_corruption", on_corruption, "when the two differ: retry (what comes twice is right) or stop");
    v("hang_seconds", hang_seconds, "without progress that end the process (exit code 3); 0: never");
    v("hang_factor", hang_factor, "and no fewer than as many times the median step");
  }
};

struct RunConfig {
  ModelSection model;
  TokenizerSection tokenizer;
  DataSection data;
  TrainSection train;
  GuardSection guard;
  template <class V> void visit(V& v) {
    v("model", model, "");
    v("tokenizer", tokenizer, "");
    v("data", data, "");
    v("train", train, "");
    v("guard", guard, "");
  }
  // Everything but the model: throws Error naming the key, the values and what to do. `where`: the file.
  void validate(const std::string& where) const;
};

// Dotted key and text, as the command line has them.
using Overrides = std::vector<std::pair<std::string, std::string>>;

// Puts them into the JSON of a configuration, as they are meant: text files replace its shards and the other
// way round, a budget of tokens one of steps, and one path may stand without its list.
void apply_overrides(Json& json, const Overrides& overrides);

// Reads, overrides, checks. train.tokens may be spelled as in a schedule ("5M"). Relative paths inside are kept
// as they are: relative to the working directory.
RunConfig load_run_config(const std::string& path, const Overrides& overrides);

// The model section with what the tokenizer decides. vocab_size may be absent (then it is the tokenizer's) or
// larger than `vocab`, not smaller; bos_token_id and eos_token_id default to `end_of_text`. Checked against
// the train section.
ModelConfig resolve_model(const RunConfig& config, int64_t vocab, int64_t end_of_text,
                          const std::string& where);

// Every key with DeepSeek-V3's value (model) or its default, and its meaning: what --help prints.
std::vector<fields::Line> list_run_config();

}  // namespace cachalot
