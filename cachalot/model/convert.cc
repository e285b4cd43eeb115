#include "model/convert.h"

#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/disk_space.h"
#include "base/error.h"
#include "base/json.h"
#include "model/checkpoint_name.h"
#include "model/hf_checkpoint.h"

namespace cachalot {

namespace fs = std::filesystem;

namespace {

bool inside(const fs::path& path, const fs::path& folder) {
  const auto [end, unused] = std::mismatch(folder.begin(), folder.end(), path.begin(), path.end());
  return end == folder.end();
}

void check_target(const ConvertOptions& o) {
  std::error_code code;
  const fs::path from = fs::weakly_canonical(fs::absolute(o.from, code), code),
                 to = fs::weakly_canonical(fs::absolute(o.to, code), code);
  if (!o.to.empty() && from == to)
    throw Error(fmt::format("{} is the source and the target", o.to))
        .hint("name another folder for the result");
  if (!o.to.empty() && inside(from, to))
    throw Error(fmt::format("the source {} lies inside the target {}", o.from, o.to))
        .hint("name another folder for the result");
  check_model_target(o.to, o.overwrite);
}

// The scales that an earlier conversion from FP8 kept beside its result.
class OriginalScales {
 public:
  explicit OriginalScales(const std::string& directory) {
    const std::string path = directory + "/" + kOriginalScales;
    if (fs::exists(path)) file_.emplace(SafetensorsFile::open(path));
  }
  explicit operator bool() const { return file_.has_value(); }

  ScaleFormat format() const {
    const auto it = file_->metadata().find("scale_fmt");
    return it != file_->metadata().end() && it->second == "ue8m0" ? ScaleFormat::power_of_two
                                                                  : ScaleFormat::float32;
  }
  // nullptr: none are known.
  const float* find(const Param& param, const ParamView& view) const {
    const StoredTensor* t = file_ ? file_->find(view.hf_name + "_scale_inv") : nullptr;
    if (!t) return nullptr;
    const std::vector<int64_t> shape = {fp8_blocks(view.rows), fp8_blocks(param.cols)};
    if (t->type != StoredType::f32 || t->shape != shape ||
        reinterpret_cast<uintptr_t>(t->data) % alignof(float) != 0)
      throw Error(
          fmt::format("{}: {} is {}, which does not fit the weight", file_->path(), t->name, t->describe()))
          .hint("the file is not this model's: remove it, it only helps to restore FP8 scales exactly");
    return reinterpret_cast<const float*>(t->data);
  }

 private:
  std::optional<SafetensorsFile> file_;
};

// The source's config.json, with what it says about storage replaced.
Json converted_config(const Json& source, const ModelConfig& config, DType storage) {
  const Json ours = model_config_json(config, storage == DType::f32 ? "float32" : "bfloat16");
  Json json = source;
  json[json.contains("dtype") ? "dtype" : "torch_dtype"] = ours["torch_dtype"];
  json["num_nextn_predict_layers"] = config.num_nextn_predict_layers;
  json.erase("quantization_config");
  if (config.fp8) json["quantization_config"] = ours["quantization_config"];
  return json;
}

// Bytes as they are.
TensorSource copied(const StoredTensor& stored) {
  TensorSource t;
  static_cast<TensorSpec&>(t) = stored;
  t.fill = [data = stored.data, bytes = stored.bytes()](const Append& append) {
    append({reinterpret_cast<const char*>(data), size_t(bytes)});
  };
  return t;
}

class Conversion {
 public:
  explicit Conversion(const ConvertOptions& options)
      : o_(options), source_(options.from, {.drop_mtp = options.drop_mtp}), original_(options.from) {
    config_ = source_.config();
    config_.fp8 = o_.storage == DType::e4m3;
    config_.fp8_power_of_two_scales = config_.fp8 && scale_format() == ScaleFormat::power_of_two;
  }

  ConvertSummary run() {
    ConvertSummary summary;
    std::vector<TensorSource> tensors = collect(summary);
    int64_t done = 0;
    for (const TensorSource& t : tensors) summary.bytes_written += t.bytes();
    summary.tensors = int64_t(tensors.size());
    require_disk(o_.to, summary.bytes_written, "the converted model");

    AtomicDirectory target(o_.to);
    const Json config = converted_config(read_json_file(o_.from + "/config.json"), config_, o_.storage);
    CHECK(parse_model_config(config, "config.json written") == config_);
    write_file_atomic(target.path() + "/config.json", config.dump(2) + "\n");
    copy_tokenizer_files(o_.from, target.path());
    write_original_scales(target.path());
    write_checkpoint(target.path(), std::move(tensors), o_.max_shard_bytes, [&](const TensorSpec& t) {
      done += t.bytes();
      if (o_.progress) o_.progress(done, summary.bytes_written, t.name);
    });
    for (const auto& entry : fs::directory_iterator(target.path()))
      summary.files += entry.path().extension() == ".safetensors";
    target.commit();
    return summary;
  }

 private:
  ScaleFormat scale_format() const {
    if (o_.scale_format) return *o_.scale_format;
    if (source_.config().fp8)
      return source_.config().fp8_power_of_two_scales ? ScaleFormat::power_of_two : ScaleFormat::float32;
    return original_ ? original_.format() : ScaleFormat::float32;
  }
  bool same_scale_format() const {
    return config_.fp8_power_of_two_scales == source_.config().fp8_power_of_two_scales;
  }

  std::vector<TensorSource> collect(ConvertSummary& summary) const {
    std::vector<TensorSource> tensors;
    for (const Param& p : source_.table()) {
      source_.check_copies(p);
      summary.parameters += p.trained() ? p.size() : 0;
      for (const ParamView& v : p.views) {
        const StoredTensor* stored = source_.find(v);
        if (!stored) continue;  // an absent copy stays absent
        const StoredTensor* scales =
            source_.is_fp8(v) ? source_.reader().find(v.hf_name + "_scale_inv") : nullptr;
        summary.bytes_read += stored->bytes() + (scales ? scales->bytes() : 0);
        if (stored->type == stored_type(p, o_.storage) && (!scales || same_scale_format())) {
          tensors.push_back(copied(*stored));
          if (scales) tensors.push_back(copied(*scales));
          continue;
        }
        const QuantiseOptions quantise{
            .format = config_.fp8_power_of_two_scales ? ScaleFormat::power_of_two : ScaleFormat::float32,
            .known_scales = original_.find(p, v),
            .stored_as_bf16 = stored->type == StoredType::bf16,
            .pool = o_.pool,
            .name = v.hf_name};
        for (TensorSource& t :
             view_tensors(p, v, o_.storage, quantise, [this, &p, &v](int64_t row, int64_t rows, float* out) {
               source_.read_rows_f32(p, v, row, rows, out, o_.pool);
             }))
          tensors.push_back(std::move(t));
      }
    }
    return tensors;
  }

  void write_original_scales(const std::string& directory) const {
    if (config_.fp8) return;
    const std::string path = directory + "/" + kOriginalScales;
    if (original_) return write_file_atomic(path, read_file(o_.from + "/" + kOriginalScales));
    std::vector<TensorSource> scales;
    for (const Param& p : source_.table())
      for (const ParamView& v : p.views)
        if (source_.is_fp8(v)) scales.push_back(copied(*source_.reader().find(v.hf_name + "_scale_inv")));
    if (scales.empty()) return;
    write_safetensors(path, std::move(scales),
                      {{"scale_fmt", source_.config().fp8_power_of_two_scales ? "ue8m0" : "float32"}});
  }

  const ConvertOptions& o_;
  HfCheckpoint source_;
  OriginalScales original_;
  ModelConfig config_;
};

}  // namespace

void check_model_target(const std::string& to, bool overwrite) {
  if (to.empty()) throw Error("the folder for the result has no name").hint("name one");
  if (!fs::exists(to)) return;
  if (!fs::is_directory(to))
    throw Error(fmt::format("{} is no directory", to)).hint("name a folder for the result");
  if (fs::exists(fs::canonical(to).parent_path() / kCompleteFile))
    throw Error(fmt::format("{} belongs to a checkpoint, which could not be resumed with another model", to))
        .hint("name another folder for the result");
  if (fs::is_empty(to)) return;
  if (!overwrite)
    throw Error(fmt::format("{} is not empty", to))
        .hint("name another folder, or replace this one with --overwrite");
  const fs::path folder = to;
  const bool weights =
      fs::exists(folder / "model.safetensors") || fs::exists(folder / "model.safetensors.index.json");
  if (!weights || !fs::exists(folder / "config.json"))  // of a run or a checkpoint, say
    throw Error(fmt::format("{} is not empty and is no model directory", to))
        .hint("only a model directory is overwritten");
}

ConvertSummary convert_model(const ConvertOptions& options) {
  CHECK(options.storage == DType::f32 || options.storage == DType::bf16 || options.storage == DType::e4m3);
  check_target(options);
  return Conversion(options).run();
}

}  // namespace cachalot
