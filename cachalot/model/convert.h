// Model directories from one storage type into another: what `cachalot convert` does.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "model/fp8_weights.h"
#include "model/safetensors.h"
#include "tensor/dtype.h"

namespace cachalot {

struct ConvertOptions {
  std::string from = {}, to = {};
  DType storage = DType::bf16;                   // f32, bf16 or e4m3 (WriteModelOptions::storage)
  std::optional<ScaleFormat> scale_format = {};  // e4m3 only; none: the source's, else float32
  bool drop_mtp = false;
  bool overwrite = false;  // `to` may be a model directory; it is replaced as a whole at the end
  int64_t max_shard_bytes = kDefaultShardBytes;
  ThreadPool* pool = nullptr;
  std::function<void(int64_t bytes, int64_t total, const std::string& tensor)> progress =
      {};  // bytes written so far
};

struct ConvertSummary {
  int64_t tensors = 0, parameters = 0;
  int64_t bytes_read = 0, bytes_written = 0;  // of tensor data
  int64_t files = 0;                          // safetensors files written
};

// Tensor by tensor through strips of a few megabytes. Error before anything is written, when the disk at
// `to` has no room for all of it. config.json keeps the source's keys except those that
// say how weights are stored (and num_nextn_predict_layers under drop_mtp); tokenizer files and
// generation_config.json are copied. `to` appears complete or not at all.
//
// FP8 -> F32 -> FP8 and, codes and scales alike, FP8 -> BF16 -> FP8 give the same bytes: the float values do
// not determine every scale (fp8_weights.h), so a converted directory keeps the old scales in
// kOriginalScales, a safetensors file of <name>_scale_inv tensors that only a conversion back reads. Each
// block's is checked against the weights and ignored when they have changed since.
ConvertSummary convert_model(const ConvertOptions& options);

// Error unless a model may be written to `to`: a name that is free, an empty folder, or, with `overwrite`, a
// model directory. Never a run, a checkpoint or what belongs to one.
void check_model_target(const std::string& to, bool overwrite);

constexpr const char* kOriginalScales = "fp8_scales.original";

}  // namespace cachalot
