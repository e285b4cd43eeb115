#include "train/extend.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "config/fields.h"
#include "model/load.h"
#include "train/step_plan.h"

namespace cachalot {

namespace fs = std::filesystem;

namespace {

// The learning rate that the run which made a model ended with.
double last_lr(const std::string& model) {
  const std::string path = model + "/config.json";
  if (!fs::is_directory(model + "/checkpoints") || !fs::exists(path))
    throw Error(fmt::format("{} is no run, so that the learning rate of its end is not known", model))
        .hint("give one: --extend.lr 7.3e-6 was DeepSeek-V3's");
  RunConfig run;
  read_fields(run, read_json_file(path), path);
  run.validate(path);  // somebody may have changed it
  const StepPlan plan(run.train);
  return plan.at(plan.steps()).lr;
}

// What plan_extension() sets in every stage's "train", and where its value comes from.
constexpr std::pair<const char*, const char*> kPlanned[] = {
    {"train.lr", "give extend.lr, constant; 0: the last one of the run that is extended"},
    {"train.min_lr", "the learning rate of the stages is constant: extend.lr"},
    {"train.warmup_steps", "the learning rate of the stages is constant: extend.lr"},
    {"train.schedule.lr", "the learning rate of the stages is constant: extend.lr"},
    {"train.steps", "give \"steps\" in extend.stages"},
    {"train.tokens", "give \"steps\" in extend.stages"},
    {"train.seq_len", "give \"context\" in extend.stages"},
    {"train.batch", "give \"batch\" in extend.stages"},
    {"train.schedule.batch", "give \"batch\" in extend.stages"},
    {"train.micro_batch", "give \"micro_batch\" in extend.stages"},
    {"train.init_from", "--model names the weights that the first stage begins with"}};

// "a.b" -> /a/b
Json::json_pointer pointer_to(std::string key) {
  std::replace(key.begin(), key.end(), '.', '/');
  return Json::json_pointer("/" + key);
}

std::string without_slash(std::string path) {  // "base/" and "base" are the same run
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

ModelConfig stretched(ModelConfig model, const ExtendSection& e, int64_t context) {
  model.yarn = YarnConfig{.factor = e.factor,
                          .original_max_position_embeddings = e.original,
                          .beta_fast = e.beta_fast,
                          .beta_slow = e.beta_slow,
                          .mscale = e.mscale,
                          .mscale_all_dim = e.mscale_all_dim};
  model.max_position_embeddings = context;
  model.fp8 = false;
  return model;
}

}  // namespace

bool is_planned_by_extend(const std::string& key) {
  return std::any_of(std::begin(kPlanned), std::end(kPlanned), [&](const auto& p) { return key == p.first; });
}

ExtendConfig load_extend_config(const std::string& path, const Overrides& overrides) {
  Json json = read_json_file(path);
  if (!json.is_object()) fields::wrong_kind(json, path, "an object");
  apply_overrides(json, overrides);
  for (const auto& [key, instead] : kPlanned)
    if (json.contains(pointer_to(key)))
      throw Error(fmt::format("{}: {} is not for the stages of an extension", path, key)).hint(instead);
  ExtendConfig config;
  read_fields(config, json, path);
  return config;
}

std::string stage_directory(const std::string& run_dir, size_t stage) {
  return fmt::format("{}/stage-{}", run_dir, stage + 1);
}

std::vector<RunConfig> plan_extension(const ExtendConfig& config, const std::string& given_model,
                                      const std::string& run_dir, const std::string& where) {
  const auto fail = [&](const std::string& what, const std::string& hint) {
    throw Error(fmt::format("{}: {}", where, what)).hint(hint);
  };
  const std::string model = without_slash(given_model), directory = resolve_model_directory(model);
  const ModelConfig was = load_model_config(directory);
  ExtendSection e = config.extend;
  if (e.original == 0)
    e.original = was.yarn ? was.yarn->original_max_position_embeddings : was.max_position_embeddings;
  if (e.stages.empty()) fail("extend.stages is empty", "give one stage or more");
  if (!(e.factor >= 1)) fail(fmt::format("extend.factor is {}", e.factor), "it must be 1 or more");
  if (!(e.lr >= 0)) fail(fmt::format("extend.lr is {}", e.lr), "it must be 0 or more");
  if (e.lr == 0) e.lr = last_lr(model);
  if (!(e.lr > 0)) fail("the learning rate at the end of the run is 0", "give one: --extend.lr");
  int64_t before = e.original;
  std::vector<RunConfig> runs;
  for (size_t i = 0; i < e.stages.size(); ++i) {
    const ExtendStage& stage = e.stages[i];
    if (stage.context <= before)
      fail(fmt::format("extend.stages[{}].context is {}, not longer than the {} before it", i, stage.context,
                       before),
           "stages go from shorter to longer contexts");
    if (double(stage.context) > e.factor * double(e.original))
      fail(fmt::format("extend.stages[{}].context is {}, but extend.factor {} x {} is {}", i, stage.context,
                       e.factor, e.original, e.factor * double(e.original)),
           fmt::format("--extend.factor {}", double(stage.context) / double(e.original)));
    before = stage.context;
    RunConfig run{.model = {},
                  .tokenizer = {.path = directory},
                  .data = config.data,
                  .train = config.train,
                  .guard = config.guard};
    run.model.json = model_config_json(stretched(was, e, stage.context), "bfloat16").dump();
    TrainSection& t = run.train;
    t.seq_len = stage.context;
    t.steps = stage.steps;
    t.tokens = 0;
    t.batch = stage.batch;
    t.micro_batch = stage.micro_batch;
    t.warmup_steps = 0;
    t.lr = t.min_lr = e.lr;
    t.schedule.batch.clear();
    t.schedule.lr = {{.until = {}, .shape = "constant", .from = {}, .to = e.lr}};
    t.init_from = i == 0 ? model : stage_directory(run_dir, i - 1);
    run.validate(fmt::format("{}, stage {}", where, i + 1));
    runs.push_back(std::move(run));
  }
  return runs;
}

}  // namespace cachalot
