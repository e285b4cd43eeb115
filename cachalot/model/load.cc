#include "model/load.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "base/error.h"
#include "model/checkpoint_name.h"
#include "model/hf_checkpoint.h"

namespace cachalot {

namespace fs = std::filesystem;

std::string resolve_model_directory(const std::string& path) {
  if (!fs::is_directory(path))
    throw Error(fmt::format("{} is not a directory", path))
        .hint("give a Hugging Face model directory or a run directory");
  const fs::path checkpoints = fs::path(path) / "checkpoints";
  if (!fs::is_directory(checkpoints)) {
    if (fs::exists(fs::path(path) / kCompleteFile)) return path + "/model";
    if (fs::exists(fs::path(path) / "config.json")) return path;
    throw Error(fmt::format("{} holds neither config.json nor checkpoints/", path))
        .hint("give a Hugging Face model directory or a run directory");
  }
  std::pair<int64_t, std::string> newest{-1, ""};
  for (const auto& entry : fs::directory_iterator(checkpoints))
    if (const auto step = checkpoint_step(entry.path().filename().string()))
      if (fs::exists(entry.path() / kCompleteFile)) newest = std::max(newest, {*step, entry.path().string()});
  if (newest.second.empty())
    throw Error(fmt::format("{} holds no complete checkpoint", checkpoints.string()))
        .hint("let the run reach its first save, or stop it with Ctrl-C: it saves before it ends");
  return newest.second + "/model";
}

namespace {

// Logits of weights that are not finite are none: every token would be the first of the vocabulary.
template <class T, class IsFinite>
void require_finite(const Param& p, const std::vector<T>& values, const IsFinite& is_finite) {
  const auto bad = std::find_if_not(values.begin(), values.end(), is_finite);
  if (bad == values.end()) return;
  const int64_t at = bad - values.begin(), row = at / p.cols;
  for (const ParamView& v : p.views)
    if (!v.copy && v.first_row <= row && row < v.first_row + v.rows)
      throw Error(
          fmt::format("{}: element [{}, {}] is not finite", v.hf_name, row - v.first_row, at % p.cols))
          .hint("the model diverged, or the file is damaged: copy or download it again");
}

void load_parameter(Stream& s, const HfCheckpoint& checkpoint, const ParamSet& params, size_t i) {
  const Param& p = params.table()[i];
  const Tensor w = params.weight(i);
  if (w.dtype == DType::e4m3 && checkpoint.is_fp8(p)) {
    const Tensor scales = params.scales(i);
    std::vector<uint8_t> codes(size_t(p.size()));
    std::vector<float> scale(size_t(scales.size()));
    checkpoint.read_fp8(p, codes.data(), scale.data());
    require_finite(p, codes, [](uint8_t code) { return (code & 0x7f) != 0x7f; });
    on(s).upload(codes.data(), w);
    on(s).upload(scale.data(), scales);
    transpose_weight(s, params, i);
    return;
  }
  std::vector<float> values(size_t(p.size()));
  checkpoint.read_f32(p, values.data());
  require_finite(p, values, [](float x) { return std::isfinite(x); });
  if (w.dtype == DType::e4m3) {
    upload_quantised(s, params, i, values);
  } else if (w.dtype == DType::f32) {
    on(s).upload(values.data(), w);
  } else if (w.dtype == DType::bf16) {
    std::vector<bf16> rounded(values.size());
    for (size_t k = 0; k < values.size(); ++k) rounded[k] = bf16(values[k]);
    on(s).upload(rounded.data(), w);
  } else {
    CHECK(w.dtype == DType::f64);
    const std::vector<double> wide(values.begin(), values.end());
    on(s).upload(wide.data(), w);
  }
}

}  // namespace

LoadedModel load_model(Stream& s, const std::string& model_or_run_directory, Precision precision,
                       const LoadOptions& options) {
  LoadedModel model;
  model.directory = resolve_model_directory(model_or_run_directory);
  const HfCheckpoint checkpoint(model.directory, {.drop_mtp = options.drop_mtp});
  model.config = checkpoint.config();
  const Recipe recipe = Recipe::of(precision);
  // E4M3 is kept parameter by parameter; a checkpoint may store some linears as BF16 all the same.
  const auto fp8 = [&](const Param& p) { return options.keep_fp8 && p.can_be_fp8() && checkpoint.is_fp8(p); };
  model.params = std::make_unique<ParamSet>(s.device(), model.config, recipe,
                                            ParamSet::Options{.gradients = options.gradients, .fp8 = fp8});
  int64_t read = 0, all = 0;
  for (const Param& p : model.params->table()) all += p.size();
  for (size_t i = 0; i < model.params->table().size(); ++i) {
    load_parameter(s, checkpoint, *model.params, i);
    if (options.progress) options.progress(read += model.params->table()[i].size(), all);
  }
  on(s).synchronize();
  return model;
}

void save_model(Stream& s, const ParamSet& params, const ModelConfig& config, const MasterSource& master,
                const std::string& directory, const SaveOptions& options) {
  CHECK(options.storage == DType::bf16 || options.storage == DType::f32);
  const RowSource rows = [&](const Param& param, int64_t first_row, int64_t count, float* out) {
    const Tensor t = master(params.index(param.name)).slice_rows(first_row, count);
    const int64_t n = count * param.cols;
    if (t.dtype == DType::f32) {
      on(s).download(t, out);
      on(s).synchronize();
    } else if (t.dtype == DType::bf16) {
      std::vector<bf16> values(static_cast<size_t>(n));
      on(s).download(t, values.data());
      on(s).synchronize();
      for (int64_t i = 0; i < n; ++i) out[i] = float(values[i]);
    } else {
      CHECK(t.dtype == DType::f64);
      std::vector<double> values(static_cast<size_t>(n));
      on(s).download(t, values.data());
      on(s).synchronize();
      for (int64_t i = 0; i < n; ++i) out[i] = float(values[i]);
    }
  };
  write_model(directory, config,
              {.storage = options.storage, .tokenizer_directory = options.tokenizer_directory}, rows);
}

}  // namespace cachalot
