// A checkpoint of a run as a model directory with other weights than those that training goes on from: the
// average (train/ema.h), or the masters before they were rounded.
#pragma once

#include <atomic>
#include <optional>
#include <string>

#include "model/fp8_weights.h"
#include "model/safetensors.h"
#include "tensor/dtype.h"

namespace cachalot {

enum class ExportWeights : uint8_t { average, masters };

struct ExportOptions {
  std::string from, to;  // a run, its newest complete checkpoint, or a checkpoint
  ExportWeights weights = ExportWeights::average;
  DType storage = DType::bf16;                      // f32, bf16 or e4m3 (WriteModelOptions::storage)
  ScaleFormat scale_format = ScaleFormat::float32;  // e4m3 only
  bool overwrite = false;                           // `to` may be a model directory
  int64_t max_shard_bytes = kDefaultShardBytes;
  ThreadPool* pool = nullptr;
  const std::atomic<bool>* stop = nullptr;  // set from outside: an Error, and nothing stays
};

// The folder that holds model/ and optimizer/. Error: `path` is neither a run nor a checkpoint.
std::string checkpoint_of(const std::string& path);

// Router biases, which have neither average nor masters, are the checkpoint's. `to` appears complete or not
// at all. Error: a checkpoint without these weights (a run without train.ema_decay), or with a tensor that is
// missing or of another shape.
void export_weights(const ExportOptions& options);

}  // namespace cachalot
