#include "model/hf_checkpoint.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "base/error.h"
#include "base/json.h"
#include "base/thread_pool.h"

namespace cachalot {

namespace fs = std::filesystem;

namespace {

constexpr const char* kScaleSuffix = "_scale_inv";
constexpr int64_t kStripValues = int64_t{1} << 22;  // written in strips of about 16 MB of float32
constexpr int64_t kPieceValues = int64_t{1} << 16;  // of a strip that several threads share
constexpr size_t kListed = 10;

int64_t strip_rows(int64_t cols, int64_t values = kStripValues) {
  return std::max<int64_t>(1, values / std::max<int64_t>(1, cols) / 128) * 128;
}

std::vector<int64_t> view_shape(const Param& p, const ParamView& v) {
  return p.is_vector() ? std::vector<int64_t>{p.cols} : std::vector<int64_t>{v.rows, p.cols};
}
std::vector<int64_t> scale_shape(const Param& p, const ParamView& v) {
  return {fp8_blocks(v.rows), fp8_blocks(p.cols)};
}

// "model.layers.12.x" -> 12; -1 for everything else.
int64_t layer_of(std::string_view name) {
  constexpr std::string_view prefix = "model.layers.";
  if (!name.starts_with(prefix)) return -1;
  name.remove_prefix(prefix.size());
  int64_t layer = -1;
  const auto [end, code] = std::from_chars(name.data(), name.data() + name.size(), layer);
  return code == std::errc() && end != name.data() + name.size() && *end == '.' ? layer : -1;
}

// "3 tensors are missing: a, b, c"
class Complaints {
 public:
  explicit Complaints(const char* what) : what_(what) {}
  void add(const std::string& entry) {
    if (entries_.size() < kListed) entries_.push_back(entry);
    ++count_;
  }
  bool empty() const { return count_ == 0; }
  void append_to(std::vector<std::string>& out) const {
    if (count_ == 0) return;
    out.push_back(fmt::format("{} {} {}: {}{}", count_, count_ == 1 ? "tensor is" : "tensors are", what_,
                              fmt::join(entries_, ", "), count_ > entries_.size() ? ", ..." : ""));
  }

 private:
  const char* what_;
  std::vector<std::string> entries_;
  size_t count_ = 0;
};

ModelConfig load_config(const std::string& directory, const HfCheckpoint::Options& options) {
  ModelConfig config = load_model_config(directory);
  if (options.drop_mtp) config.num_nextn_predict_layers = 0;
  return config;
}

// What is wrong with a stored tensor that should be `view`, or "".
std::string type_or_shape_problem(const CheckpointReader& reader, const ModelConfig& config, const Param& p,
                                  const ParamView& v, const StoredTensor& t) {
  if (t.shape != view_shape(p, v))
    return fmt::format("{} is {}, config.json says [{}]", v.hf_name, t.describe(),
                       fmt::join(view_shape(p, v), ", "));
  if (t.type == StoredType::bf16 || t.type == StoredType::f32) return "";
  if (t.type != StoredType::f8_e4m3)
    return fmt::format("{} is {}, supported are BF16, F32 and F8_E4M3", v.hf_name, name_of(t.type));
  if (!p.can_be_fp8()) return fmt::format("{} is F8_E4M3, which only linear layers are", v.hf_name);
  if (!config.fp8) return fmt::format("{} is F8_E4M3, but config.json has no quantization_config", v.hf_name);
  const StoredTensor* scales = reader.find(v.hf_name + kScaleSuffix);
  if (scales && (scales->type != StoredType::f32 || scales->shape != scale_shape(p, v)))
    return fmt::format("{} is {}, expected F32 [{}]", scales->name, scales->describe(),
                       fmt::join(scale_shape(p, v), ", "));
  return "";
}

void check_tensors(const CheckpointReader& reader, const ModelConfig& config, const std::vector<Param>& table,
                   const HfCheckpoint::Options& options) {
  Complaints missing("missing"), unexpected("unexpected"), wrong("wrong");
  bool only_mtp_missing = true, only_mtp_unexpected = true;
  const auto miss = [&](const std::string& name) {
    missing.add(name);
    only_mtp_missing &= layer_of(name) >= config.num_hidden_layers;
  };
  std::unordered_set<std::string> used;
  for (const Param& p : table)
    for (const ParamView& v : p.views) {
      used.insert(v.hf_name);
      const StoredTensor* t = reader.find(v.hf_name);
      if (!t) {
        if (!v.copy) miss(v.hf_name);
        continue;
      }
      if (const std::string problem = type_or_shape_problem(reader, config, p, v, *t); !problem.empty())
        wrong.add(problem);
      if (t->type != StoredType::f8_e4m3) continue;
      used.insert(v.hf_name + kScaleSuffix);
      if (!reader.find(v.hf_name + kScaleSuffix)) miss(v.hf_name + kScaleSuffix);
    }
  // A layer beyond those of config.json that is none of MTP is one too many.
  const auto is_mtp = [&](int64_t layer) {
    return layer >= config.num_hidden_layers &&
           reader.find(fmt::format("model.layers.{}.eh_proj.weight", layer));
  };
  for (const std::string& name : reader.names()) {
    const int64_t layer = layer_of(name);
    if (used.contains(name) || name.ends_with("rotary_emb.inv_freq"))
      continue;  // a table that older exports carry
    if (options.drop_mtp && is_mtp(layer)) continue;
    unexpected.add(name);
    only_mtp_unexpected &= layer >= config.num_hidden_layers;
  }

  std::vector<std::string> parts;
  missing.append_to(parts);
  unexpected.append_to(parts);
  wrong.append_to(parts);
  if (parts.empty()) return;
  std::string hint = "config.json and weights do not belong together, or the copy is incomplete";
  if (parts.size() == 1 && !missing.empty() && only_mtp_missing)
    hint = fmt::format(
        "config.json announces MTP layers (num_nextn_predict_layers {}) that the checkpoint lacks: leave "
        "them out with --drop-mtp",
        config.num_nextn_predict_layers);
  if (parts.size() == 1 && !unexpected.empty() && only_mtp_unexpected)
    hint = options.drop_mtp
               ? fmt::format("config.json says num_hidden_layers {}; the checkpoint has more",
                             config.num_hidden_layers)
               : fmt::format(
                     "these are layers beyond num_hidden_layers {} + num_nextn_predict_layers {}: set "
                     "num_nextn_predict_layers, or leave them out with --drop-mtp",
                     config.num_hidden_layers, config.num_nextn_predict_layers);
  throw Error(fmt::format("{}: {}", reader.directory(), fmt::join(parts, "; "))).hint(hint);
}

template <class T> T load(const uint8_t* from) {  // data in a file has no alignment
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------
// Reading.

HfCheckpoint::HfCheckpoint(const std::string& directory, const Options& options)
    : config_(load_config(directory, options)), table_(parameter_table(config_)), reader_(directory) {
  check_tensors(reader_, config_, table_, options);
}

bool HfCheckpoint::is_fp8(const ParamView& view) const {
  const StoredTensor* t = find(view);
  return t && t->type == StoredType::f8_e4m3;
}

bool HfCheckpoint::is_fp8(const Param& param) const {
  return std::all_of(param.views.begin(), param.views.end(),
                     [&](const ParamView& v) { return v.copy || is_fp8(v); });
}

std::vector<float> HfCheckpoint::read_scales(const ParamView& view, int64_t first, int64_t count) const {
  const StoredTensor* t = reader_.find(view.hf_name + kScaleSuffix);
  CHECK(t && t->type == StoredType::f32, view.hf_name);
  const int64_t cols = t->shape[1];
  CHECK(0 <= first && first + count <= t->shape[0], view.hf_name);
  std::vector<float> scales(size_t(count * cols));
  std::memcpy(scales.data(), t->data + first * cols * 4, scales.size() * 4);
  for (size_t i = 0; i < scales.size(); ++i)
    if (!std::isfinite(scales[i]) || scales[i] < 0)
      throw Error(fmt::format("{}: {}[{}, {}] is {}", reader_.file_of(t->name), t->name,
                              first + int64_t(i) / cols, int64_t(i) % cols, scales[i]))
          .hint("scales are finite and not negative: the file is damaged");
  return scales;
}

void HfCheckpoint::read_rows_f32(const Param& param, const ParamView& view, int64_t first_row, int64_t rows,
                                 float* out, ThreadPool* pool) const {
  const StoredTensor* t = find(view);
  CHECK(t && 0 <= first_row && first_row + rows <= view.rows, view.hf_name);
  const int64_t first = first_row * param.cols, count = rows * param.cols;
  const auto ranges = [&](int64_t n, int64_t grain, const auto& body) {
    if (pool) pool->parallel_ranges(n, grain, body);
    else body(0, n);
  };
  switch (t->type) {
    case StoredType::f32:
      return ranges(count, kPieceValues, [&](int64_t begin, int64_t end) {
        std::memcpy(out + begin, t->data + (first + begin) * 4, size_t(end - begin) * 4);
      });
    case StoredType::bf16:
      return ranges(count, kPieceValues, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) out[i] = float(load<bf16>(t->data + (first + i) * 2));
      });
    default: {
      CHECK(t->type == StoredType::f8_e4m3 && first_row % 128 == 0, view.hf_name);
      const std::vector<float> scales = read_scales(view, first_row / 128, fp8_blocks(rows));
      ranges(rows, 128, [&](int64_t begin, int64_t end) {
        dequantise(t->data + first + begin * param.cols, scales.data() + begin / 128 * fp8_blocks(param.cols),
                   end - begin, param.cols, out + begin * param.cols);
      });
    }
  }
}

void HfCheckpoint::read_f32(const Param& param, float* out) const {
  for (const ParamView& v : param.views)
    if (!v.copy) read_rows_f32(param, v, 0, v.rows, out + v.first_row * param.cols);
  check_copies(param);
}

void HfCheckpoint::read_rows_fp8(const Param& param, const ParamView& view, int64_t first_row, int64_t rows,
                                 uint8_t* codes, float* scales) const {
  const StoredTensor* t = find(view);
  CHECK(t && t->type == StoredType::f8_e4m3 && first_row % 128 == 0 && first_row + rows <= view.rows,
        view.hf_name);
  std::memcpy(codes, t->data + first_row * param.cols, size_t(rows * param.cols));
  const std::vector<float> s = read_scales(view, first_row / 128, fp8_blocks(rows));
  std::copy(s.begin(), s.end(), scales);
}

void for_strips(int64_t rows, int64_t cols, int64_t values,
                const std::function<void(int64_t first_row, int64_t rows)>& body) {
  const int64_t strip = strip_rows(cols, values);
  for (int64_t row = 0; row < rows; row += strip) body(row, std::min(strip, rows - row));
}

void HfCheckpoint::check_copies(const Param& param) const {
  const ParamView& original = param.views[0];
  for (const ParamView& v : param.views) {
    if (!v.copy || !find(v)) continue;
    const StoredTensor &kept = *find(original), &copy = *find(v);
    if (kept.type == copy.type && kept.type != StoredType::f8_e4m3 &&
        std::memcmp(kept.data, copy.data, size_t(copy.bytes())) == 0)
      continue;
    const int64_t strip = strip_rows(param.cols);
    std::vector<float> a(size_t(std::min(strip, v.rows) * param.cols)), b(a.size());
    for (int64_t row = 0; row < v.rows; row += strip) {
      const int64_t rows = std::min(strip, v.rows - row);
      read_rows_f32(param, original, row, rows, a.data());
      read_rows_f32(param, v, row, rows, b.data());
      const size_t count = size_t(rows * param.cols);
      if (std::memcmp(a.data(), b.data(), count * 4) == 0) continue;
      const size_t at =
          size_t(std::mismatch(a.begin(), a.begin() + ptrdiff_t(count), b.begin()).first - a.begin());
      const int64_t r = row + int64_t(std::min(at, count - 1)) / param.cols,
                    c = int64_t(std::min(at, count - 1)) % param.cols;
      throw Error(fmt::format("{}: {} differs from {}, first at [{}, {}]", reader_.file_of(v.hf_name),
                              v.hf_name, original.hf_name, r, c))
          .hint(
              "DeepSeek-V3's MTP layers share embedding and head with the model; leave them out with "
              "--drop-mtp");
    }
  }
}

// ---------------------------------------------------------------------------------------------------------
// Writing.

namespace {

std::string_view bytes_of(const void* data, int64_t bytes) {
  return {static_cast<const char*>(data), size_t(bytes)};
}

// Codes and scales of one view. Scales come first in the file and need all rows, so the rows are read twice.
struct Fp8View {
  int64_t rows, cols;
  QuantiseOptions options;
  ViewRows read;
  std::vector<float> scales;

  template <class Body> void for_values(const Body& body) const {  // body(first row, rows, values)
    std::vector<float> x(size_t(std::min(strip_rows(cols), rows) * cols));
    for_strips(rows, cols, kStripValues, [&](int64_t row, int64_t n) {
      read(row, n, x.data());
      body(row, n, x.data());
    });
  }
  const std::vector<float>& get_scales() {
    if (!scales.empty()) return scales;
    scales.resize(size_t(fp8_blocks(rows) * fp8_blocks(cols)));
    for_values([&](int64_t row, int64_t n, const float* x) {
      const int64_t at = row / 128 * fp8_blocks(cols);
      QuantiseOptions strip = options;
      if (strip.known_scales) strip.known_scales += at;
      choose_scales(x, n, cols, strip, scales.data() + at);
    });
    return scales;
  }
  void append_scales(const Append& append) {
    append(bytes_of(get_scales().data(), int64_t(get_scales().size()) * 4));
  }
  void append_codes(const Append& append) {
    get_scales();
    std::vector<uint8_t> codes;
    for_values([&](int64_t row, int64_t n, const float* x) {
      codes.resize(size_t(n * cols));
      quantise(x, scales.data() + row / 128 * fp8_blocks(cols), n, cols, options, codes.data());
      append(bytes_of(codes.data(), n * cols));
    });
  }
};

void append_plain(StoredType type, int64_t rows, int64_t cols, const ViewRows& read, ThreadPool* pool,
                  const Append& append) {
  std::vector<float> x(size_t(std::min(strip_rows(cols), rows) * cols));
  std::vector<bf16> narrow(type == StoredType::bf16 ? x.size() : 0);
  for_strips(rows, cols, kStripValues, [&](int64_t row, int64_t n) {
    const int64_t count = n * cols;
    read(row, n, x.data());
    if (type == StoredType::f32) return append(bytes_of(x.data(), count * 4));
    const auto round = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) narrow[size_t(i)] = bf16(x[size_t(i)]);
    };
    if (pool) pool->parallel_ranges(count, kPieceValues, round);
    else round(0, count);
    append(bytes_of(narrow.data(), count * 2));
  });
}

}  // namespace

StoredType stored_type(const Param& param, DType storage) {
  if (storage == DType::f32 || param.kind == ParamKind::gate_bias) return StoredType::f32;
  return storage == DType::e4m3 && param.can_be_fp8() ? StoredType::f8_e4m3 : StoredType::bf16;
}

int64_t model_bytes(const std::vector<Param>& table, DType storage) {
  int64_t bytes = 0;
  for (const Param& p : table)
    for (const ParamView& v : p.views)
      for (const TensorSource& t : view_tensors(p, v, storage, {}, {})) bytes += t.bytes();
  return bytes;
}

std::vector<TensorSource> view_tensors(const Param& param, const ParamView& view, DType storage,
                                       const QuantiseOptions& quantise, const ViewRows& read) {
  const StoredType type = stored_type(param, storage);
  TensorSource weight;
  weight.name = view.hf_name;
  weight.type = type;
  weight.shape = view_shape(param, view);
  if (type != StoredType::f8_e4m3) {
    weight.fill = [type, rows = view.rows, cols = param.cols, read, pool = quantise.pool](
                      const Append& append) { append_plain(type, rows, cols, read, pool, append); };
    return {std::move(weight)};
  }
  auto fp8 = std::make_shared<Fp8View>(
      Fp8View{.rows = view.rows, .cols = param.cols, .options = quantise, .read = read, .scales = {}});
  fp8->options.name = view.hf_name;
  weight.fill = [fp8](const Append& append) { fp8->append_codes(append); };
  TensorSource scales;
  scales.name = view.hf_name + kScaleSuffix;
  scales.type = StoredType::f32;
  scales.shape = scale_shape(param, view);
  scales.fill = [fp8](const Append& append) { fp8->append_scales(append); };
  return {std::move(weight), std::move(scales)};
}

void write_model(const std::string& directory, const ModelConfig& config, const WriteModelOptions& options,
                 const RowSource& source) {
  ModelConfig stored = config;
  stored.fp8 = options.storage == DType::e4m3;
  stored.fp8_power_of_two_scales = stored.fp8 && config.fp8_power_of_two_scales;
  const QuantiseOptions quantise{
      .format = stored.fp8_power_of_two_scales ? ScaleFormat::power_of_two : ScaleFormat::float32,
      .pool = options.pool,
      .name = {}};
  const std::vector<Param> table = parameter_table(config);
  std::vector<TensorSource> tensors;
  for (const Param& p : table)
    for (const ParamView& v : p.views)
      for (TensorSource& t :
           view_tensors(p, v, options.storage, quantise,
                        [&p, first = v.first_row, &source](int64_t row, int64_t rows, float* out) {
                          source(p, first + row, rows, out);
                        }))
        tensors.push_back(std::move(t));

  Json generation = Json::object();
  generation["bos_token_id"] = config.bos_token_id;
  generation["eos_token_id"] = config.eos_token_id;
  write_file_atomic(directory + "/generation_config.json", generation.dump(2) + "\n");
  if (!options.tokenizer_directory.empty()) copy_tokenizer_files(options.tokenizer_directory, directory);
  const Json json = model_config_json(stored, options.storage == DType::f32 ? "float32" : "bfloat16");
  write_file_atomic(directory + "/config.json", json.dump(2) + "\n");
  write_checkpoint(directory, std::move(tensors), options.max_shard_bytes);
}

void copy_tokenizer_files(const std::string& from, const std::string& to) {
  static const std::unordered_set<std::string> names = {"special_tokens_map.json", "added_tokens.json",
                                                        "vocab.json", "merges.txt", "generation_config.json"};
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(from, code)) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_regular_file()) continue;
    if (names.contains(name) || name.starts_with("tokenizer") || name.starts_with("chat_template."))
      write_file_atomic(to + "/" + name, read_file(entry.path().string()));
  }
  if (code) throw Error(fmt::format("cannot list {}: {}", from, code.message())).hint("check the path");
}

}  // namespace cachalot
