#include "train/export.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <vector>

#include "base/disk_space.h"
#include "base/error.h"
#include "base/files.h"
#include "model/convert.h"
#include "model/hf_checkpoint.h"
#include "model/load.h"
#include "train/ema.h"
#include "train/state_tensor.h"

namespace cachalot {

namespace fs = std::filesystem;

namespace {

// The state of an optimizer, over all its files.
class OptimizerFiles {
 public:
  explicit OptimizerFiles(const std::string& checkpoint) : directory_(checkpoint + "/optimizer") {
    std::vector<std::string> paths;
    if (fs::is_directory(directory_))
      for (const auto& entry : fs::directory_iterator(directory_))
        if (entry.path().extension() == ".safetensors") paths.push_back(entry.path().string());
    std::sort(paths.begin(), paths.end());
    for (const std::string& path : paths) files_.push_back(SafetensorsFile::open(path));
  }
  // nullptr: there is none.
  const StoredTensor* find(const std::string& name) const {
    for (const SafetensorsFile& file : files_)
      if (const StoredTensor* t = file.find(name)) return t;
    return nullptr;
  }
  const std::string& directory() const { return directory_; }

 private:
  std::string directory_;
  std::vector<SafetensorsFile> files_;
};

}  // namespace

std::string checkpoint_of(const std::string& path) {
  if (fs::exists(fs::path(path) / "COMPLETE") && fs::is_directory(fs::path(path) / "model")) return path;
  const fs::path model = resolve_model_directory(path);
  if (model.filename() == "model" && fs::exists(model.parent_path() / "COMPLETE"))
    return model.parent_path().string();
  throw Error(fmt::format("{} is neither a run nor a checkpoint of one", path))
      .hint("name a run directory, or RUN/checkpoints/step-...");
}

void export_weights(const ExportOptions& o) {
  check_model_target(o.to, o.overwrite);
  const std::string checkpoint = checkpoint_of(o.from);
  const HfCheckpoint model(checkpoint + "/model", {});
  const OptimizerFiles state(checkpoint);
  const std::string prefix = o.weights == ExportWeights::average ? kAveragePrefix : kMasterPrefix;
  for (const Param& p : model.table()) {
    if (!p.trained()) continue;
    const StoredTensor* t = state.find(prefix + p.name);
    if (!t && o.weights == ExportWeights::average)
      throw Error(fmt::format("{} holds no average of {}", state.directory(), p.name))
          .hint("only runs with train.ema_decay have one; --weights latest exports the weights themselves");
    if (!t)
      throw Error(fmt::format("{} holds no {}{}", state.directory(), prefix, p.name))
          .hint("the checkpoint is of another version; --weights latest exports the weights themselves");
    if (t->type != StoredType::f32 || t->size() != p.size())
      throw Error(fmt::format("{}: {} is {}, not F32 of {} numbers", state.directory(), t->name,
                              t->describe(), p.size()))
          .hint("the checkpoint is not this model's");
  }
  ModelConfig config = model.config();
  config.fp8_power_of_two_scales = o.scale_format == ScaleFormat::power_of_two;
  require_disk(o.to, model_bytes(model.table(), o.storage), "the exported model");
  AtomicDirectory target(o.to);
  write_model(target.path(), config,
              {.storage = o.storage,
               .max_shard_bytes = o.max_shard_bytes,
               .tokenizer_directory = checkpoint + "/model",
               .pool = o.pool},
              [&](const Param& p, int64_t first_row, int64_t rows, float* out) {
                if (o.stop && *o.stop) throw Error(fmt::format("stopped: {} is as it was", o.to));
                if (p.trained()) {
                  const StoredTensor* t = state.find(prefix + p.name);
                  std::memcpy(out, t->data + size_t(first_row * p.cols) * sizeof(float),
                              size_t(rows * p.cols) * sizeof(float));
                  return;
                }
                std::vector<float> all(size_t(p.size()));
                model.read_f32(p, all.data());
                std::memcpy(out, all.data() + first_row * p.cols, size_t(rows * p.cols) * sizeof(float));
              });
  target.commit();
}

}  // namespace cachalot
