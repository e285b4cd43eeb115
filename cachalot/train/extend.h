// Longer contexts for a trained model: YaRN stretches its rotary frequencies, then it is trained on for some
// steps with longer rows, in stages (V3 report, section 4.3: factor 40 over 4K, 1000 steps at 32K, 1000 at
// 128K, with the learning rate that pre-training ended with). Each stage is a run of `pretrain` that begins
// with the weights of the one before.
#pragma once

#include <string>
#include <vector>

#include "train/config.h"

namespace cachalot {

struct ExtendStage {
  int64_t context = 0, steps = 1000, batch = 1, micro_batch = 1;
  template <class V> void visit(V& v) {
    v("context", context, "tokens of a row, the longest context after the stage");
    v("steps", steps, "optimizer steps");
    v("batch", batch, "rows of a step");
    v("micro_batch", micro_batch, "rows that go through the model at once");
  }
};

// Defaults: DeepSeek-V3's.
struct ExtendSection {
  double factor = 40;
  int64_t original = 0;
  double beta_fast = 32, beta_slow = 1, mscale = 1, mscale_all_dim = 1;
  double lr = 0;
  std::vector<ExtendStage> stages = {{.context = 32768, .steps = 1000, .batch = 1920},
                                     {.context = 131072, .steps = 1000, .batch = 480}};
  template <class V> void visit(V& v) {
    v("factor", factor, "YaRN: the longest context over the original one, in all stages");
    v("original", original, "the context of pre-training; 0: what the model's config.json says");
    v("beta_fast", beta_fast, "YaRN: pairs that turn more often in the original context stay as they are");
    v("beta_slow", beta_slow, "YaRN: pairs that turn less often are slowed by the whole factor");
    v("mscale", mscale, "YaRN: of the attention's temperature, sqrt(t) = 0.1 mscale ln(factor) + 1");
    v("mscale_all_dim", mscale_all_dim, "YaRN: the same, of all of a key's width");
    v("lr", lr, "learning rate, constant; 0: the last one of the run that is extended");
    v("stages", stages, "[{\"context\": 32768, \"steps\": 1000, \"batch\": 1920, \"micro_batch\": 1}, ...]");
  }
};

struct ExtendConfig {
  ExtendSection extend;
  DataSection data;
  TrainSection train;  // the rest of how stages are trained: precision, weight decay, evaluation, saving
  GuardSection guard;
  template <class V> void visit(V& v) {
    v("extend", extend, "");
    v("data", data, "");
    v("train", train, "");
    v("guard", guard, "");
  }
};

// Whether plan_extension() sets the field, such as "train.lr", of every stage.
bool is_planned_by_extend(const std::string& key);

// Error, besides what read_fields() refuses: a field of "train" that the plan sets, and what to give instead.
ExtendConfig load_extend_config(const std::string& path, const Overrides& overrides);

// The runs, one a stage; stage n is in <run_dir>/stage-n. `model`: a model or run directory. Error: contexts
// that do not grow, or beyond factor x original; a model directory without a run, and no learning rate;
// whatever RunConfig::validate() refuses.
std::vector<RunConfig> plan_extension(const ExtendConfig& config, const std::string& model,
                                      const std::string& run_dir, const std::string& where);
std::string stage_directory(const std::string& run_dir, size_t stage);  // 0, 1, ...

}  // namespace cachalot
