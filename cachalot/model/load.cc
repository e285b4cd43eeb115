#include "model/load.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <filesystem>

#include "base/error.h"
#include "base/thread_pool.h"
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

constexpr int64_t kStrip = int64_t(1) << 20;  // numbers that are read together; they stay in a cache
constexpr int64_t kPiece = int64_t(1) << 15;  // of them, for one thread

bool is_finite(float x) { return (std::bit_cast<uint32_t>(x) & 0x7f800000u) != 0x7f800000u; }
bool is_finite(uint8_t code) { return (code & 0x7f) != 0x7f; }  // of an e4m3

// Logits of weights that are not finite are none: every token would be the first of the vocabulary.
// `values` begin with row `row` of the view.
template <class T> void require_finite(const Param& p, const ParamView& v, int64_t row, const T* values,
                                       int64_t count, ThreadPool& pool) {
  std::atomic<int64_t> first = count;
  pool.parallel_ranges(count, kPiece, [&](int64_t begin, int64_t end) {
    bool good = true;
    for (int64_t i = begin; i < end; ++i) good &= is_finite(values[i]);
    if (good) return;
    while (is_finite(values[begin])) ++begin;
    for (int64_t was = first; begin < was && !first.compare_exchange_weak(was, begin);) {
    }
  });
  if (first < count)
    throw Error(
        fmt::format("{}: element [{}, {}] is not finite", v.hf_name, row + first / p.cols, first % p.cols))
        .hint("the model diverged, or the file is damaged: copy or download it again");
}

// use(row of the parameter, rows, values) for strip after strip.
template <class Use>
void read_strips(const HfCheckpoint& checkpoint, const Param& p, ThreadPool& pool, const Use& use) {
  std::vector<float> values;
  for (const ParamView& v : p.views)
    if (!v.copy)
      for_strips(v.rows, p.cols, kStrip, [&](int64_t row, int64_t rows) {
        values.resize(size_t(rows * p.cols));
        checkpoint.read_rows_f32(p, v, row, rows, values.data(), &pool);
        require_finite(p, v, row, values.data(), rows * p.cols, pool);
        use(v.first_row + row, rows, values);
      });
  checkpoint.check_copies(p);
}

// Codes that stay codes.
void upload_fp8(Stream& s, const HfCheckpoint& checkpoint, const ParamSet& params, size_t i,
                ThreadPool& pool) {
  const Param& p = params.table()[i];
  const Tensor w = params.weight(i), w_scales = params.scales(i);
  std::vector<uint8_t> codes;
  std::vector<float> scales;
  for (const ParamView& v : p.views) {
    CHECK(v.rows == p.part_rows, v.hf_name);
    for_strips(v.rows, p.cols, 4 * kStrip, [&](int64_t row, int64_t rows) {
      const int64_t block = v.first_row / p.part_rows * fp8_blocks(p.part_rows) + row / kScaleBlock;
      codes.resize(size_t(rows * p.cols));
      scales.resize(size_t(fp8_blocks(rows) * fp8_blocks(p.cols)));
      checkpoint.read_rows_fp8(p, v, row, rows, codes.data(), scales.data());
      require_finite(p, v, row, codes.data(), rows * p.cols, pool);
      on(s).upload(codes.data(), w.slice_rows(v.first_row + row, rows));
      on(s).upload(scales.data(), w_scales.slice_rows(block, fp8_blocks(rows)));
    });
  }
  transpose_weight(s, params, i);
}

void load_parameter(Stream& s, const HfCheckpoint& checkpoint, const ParamSet& params, size_t i,
                    ThreadPool& pool) {
  const Param& p = params.table()[i];
  const Tensor w = params.weight(i);
  if (w.dtype != DType::e4m3) return upload_parameter(s, checkpoint, p, w, pool);
  if (checkpoint.is_fp8(p)) return upload_fp8(s, checkpoint, params, i, pool);
  read_strips(checkpoint, p, pool, [&](int64_t row, int64_t rows, const std::vector<float>& values) {
    upload_quantised_rows(s, params, i, row, rows, values.data(), pool);
  });
  transpose_weight(s, params, i);
}

}  // namespace

void upload_parameter(Stream& s, const HfCheckpoint& checkpoint, const Param& param, const Tensor& to,
                      ThreadPool& pool) {
  CHECK(to.rows == param.rows && to.cols == param.cols, param.name + " into " + to.describe());
  std::vector<bf16> rounded;
  std::vector<double> wide;
  read_strips(checkpoint, param, pool, [&](int64_t row, int64_t rows, const std::vector<float>& values) {
    const Tensor strip = to.slice_rows(row, rows);
    if (to.dtype == DType::f32) return on(s).upload(values.data(), strip);
    if (to.dtype == DType::f64) {
      wide.assign(values.begin(), values.end());
      return on(s).upload(wide.data(), strip);
    }
    CHECK(to.dtype == DType::bf16, to.describe());
    rounded.resize(values.size());
    pool.parallel_ranges(int64_t(values.size()), kPiece, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) rounded[size_t(k)] = bf16(values[size_t(k)]);
    });
    on(s).upload(rounded.data(), strip);
  });
}

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
  ThreadPool pool(available_cpus());
  int64_t read = 0, all = 0;
  for (const Param& p : model.params->table()) all += p.size();
  for (size_t i = 0; i < model.params->table().size(); ++i) {
    load_parameter(s, checkpoint, *model.params, i, pool);
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
