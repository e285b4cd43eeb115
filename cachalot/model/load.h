// Models between disk and device: a Hugging Face directory in, parameters out, and back.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "config/precision.h"
#include "model/params.h"

namespace cachalot {

class HfCheckpoint;

// A model directory is taken as it is; a checkpoint of a run stands for its model, a run directory for that of
// its newest complete checkpoint. Error when the path is none of these.
std::string resolve_model_directory(const std::string& path);

struct LoadOptions {
  bool gradients = false;  // room for gradients too
  bool drop_mtp = false;   // leave the MTP layers of the checkpoint alone
  // E4M3 weights stay E4M3 with their scales; false: dequantised to the recipe's format. In the fp8 recipe
  // they always stay, and other weights of linear layers are quantised.
  bool keep_fp8 = true;
  // Told of the parameters read so far, and of all of them, after every tensor of ours.
  std::function<void(int64_t read, int64_t all)> progress = {};
};

struct LoadedModel {
  ModelConfig config;
  std::string directory;
  std::unique_ptr<ParamSet> params;
};

// Reads, checks and uploads every parameter. Errors name file, tensor and values (model/hf_checkpoint.h).
LoadedModel load_model(Stream& s, const std::string& model_or_run_directory, Precision precision,
                       const LoadOptions& options);

// Queues one parameter as it is in a checkpoint into `to` [rows, cols], of f32, bf16 or f64: read, checked
// and rounded strip by strip on the threads of `pool`, so that no copy of the whole is made. Error: a number
// is not finite.
void upload_parameter(Stream& s, const HfCheckpoint& checkpoint, const Param& param, const Tensor& to,
                      ThreadPool& pool);

struct SaveOptions {
  DType storage = DType::bf16;      // or f32
  std::string tokenizer_directory;  // tokenizer files to copy along, or empty
};

// Where a parameter's best copy is: the optimizer's master where there is one, else the weight itself.
using MasterSource = std::function<Tensor(size_t param)>;

// Writes a model directory: config.json, generation_config.json, model*.safetensors, tokenizer files. Not
// atomic as a whole: write into an AtomicDirectory.
void save_model(Stream& s, const ParamSet& params, const ModelConfig& config, const MasterSource& master,
                const std::string& directory, const SaveOptions& options);

}  // namespace cachalot
