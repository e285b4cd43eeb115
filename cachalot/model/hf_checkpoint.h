// A Hugging Face model directory seen through the parameter table (config/params.h): host memory only, no
// device.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "config/params.h"
#include "model/fp8_weights.h"
#include "model/safetensors.h"
#include "tensor/dtype.h"

namespace cachalot {

// An open checkpoint whose every tensor has been found and has a readable type and the right shape: BF16,
// F32, or F8_E4M3 with <name>_scale_inv. The constructor lists all that is missing, unexpected or wrong in
// one Error.
class HfCheckpoint {
 public:
  struct Options {
    // Leave the MTP layers out: config().num_nextn_predict_layers becomes 0 and their tensors are ignored.
    // Without it they must be there if config.json says so, and must not if it does not.
    bool drop_mtp = false;
  };
  HfCheckpoint(const std::string& directory, const Options& options);

  const std::string& directory() const { return reader_.directory(); }
  const ModelConfig& config() const { return config_; }
  const std::vector<Param>& table() const { return table_; }
  const CheckpointReader& reader() const { return reader_; }

  const StoredTensor* find(const ParamView& view) const { return reader_.find(view.hf_name); }
  bool is_fp8(const ParamView& view) const;
  bool is_fp8(const Param& param) const;  // all of it

  // A whole parameter, [rows, cols] as the table has it; E4M3 is dequantised. Compares MTP's copies of the
  // embedding and the head with the original (Error if they differ; absent copies are fine).
  void read_f32(const Param& param, float* out) const;
  // `rows` rows of one view, from `first_row` of the view (E4M3: a multiple of 128), on the threads of `pool`
  // if there are any. Large parameters are read so, in strips (for_strips), without a copy of the whole.
  void read_rows_f32(const Param& param, const ParamView& view, int64_t first_row, int64_t rows, float* out,
                     ThreadPool* pool = nullptr) const;
  // The same of an E4M3 view as codes [rows, cols] and scales [blocks(rows), blocks(cols)], where blocks(n) =
  // ceil(n / 128): the layout of Tensor::scales. From a multiple of 128 too.
  void read_rows_fp8(const Param& param, const ParamView& view, int64_t first_row, int64_t rows,
                     uint8_t* codes, float* scales) const;
  void check_copies(const Param& param) const;
  // `count` block rows of a view's scales; Error if one is negative or not finite.
  std::vector<float> read_scales(const ParamView& view, int64_t first, int64_t count) const;

 private:
  ModelConfig config_;
  std::vector<Param> table_;
  CheckpointReader reader_;
};

// body(first row, rows) over all rows of a view, some `values` numbers at a time: whole blocks of 128 rows
// but for the last.
void for_strips(int64_t rows, int64_t cols, int64_t values,
                const std::function<void(int64_t first_row, int64_t rows)>& body);

// Delivers rows [first_row, first_row + rows) of a parameter as float32 into out [rows, cols].
using RowSource = std::function<void(const Param& param, int64_t first_row, int64_t rows, float* out)>;

struct WriteModelOptions {
  // f32: all tensors F32. bf16: BF16, router bias F32. e4m3: the published FP8 layout, linear weights E4M3
  // with weight_scale_inv (powers of two if config.fp8_power_of_two_scales), the rest as bf16.
  DType storage = DType::bf16;
  int64_t max_shard_bytes = kDefaultShardBytes;
  std::string tokenizer_directory = {};  // copy_tokenizer_files() from here, or empty
  ThreadPool* pool = nullptr;
};

// Writes config.json, generation_config.json (unless copied), the tensors under their published names, MTP's
// copies of embedding and head included, and the tokenizer files. Rows are asked for in strips of some
// megabytes, some of them twice. Files are atomic one by one; for the whole write into an AtomicDirectory.
void write_model(const std::string& directory, const ModelConfig& config, const WriteModelOptions& options,
                 const RowSource& source);

// Copies what belongs to the text side and to generation, if present: tokenizer*, special_tokens_map.json,
// added_tokens.json, vocab.json, merges.txt, chat_template.*, generation_config.json.
void copy_tokenizer_files(const std::string& from, const std::string& to);

// What a parameter is stored as in a checkpoint of type f32, bf16 or e4m3 (see WriteModelOptions::storage).
StoredType stored_type(const Param& param, DType storage);

// Bytes of tensor data that write_model writes, every copy included.
int64_t model_bytes(const std::vector<Param>& table, DType storage);

// The tensors that one view is stored as, each with the function that computes its bytes. `read` delivers
// rows of the view as float32. Shared by write_model and convert (model/convert.h).
using ViewRows = std::function<void(int64_t first_row, int64_t rows, float* out)>;
std::vector<TensorSource> view_tensors(const Param& param, const ParamView& view, DType storage,
                                       const QuantiseOptions& quantise, const ViewRows& read);

}  // namespace cachalot
