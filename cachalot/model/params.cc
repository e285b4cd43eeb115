#include "model/params.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "base/rng.h"
#include "base/thread_pool.h"
#include "model/fp8_weights.h"

namespace cachalot {

namespace {

constexpr int64_t kAlign = 256;

int64_t aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

int64_t blocks(int64_t n) { return (n + kScaleBlock - 1) / kScaleBlock; }

int64_t scale_rows(const Param& p) { return p.rows / p.part_rows * blocks(p.part_rows); }

DType weight_dtype(const Param& p, Recipe recipe, const std::function<bool(const Param&)>& fp8) {
  if (p.kind == ParamKind::gate_bias) return DType::f32;
  if (p.kind == ParamKind::norm || p.kind == ParamKind::gate) return recipe.stat;
  return p.can_be_fp8() && (recipe.fp8 || (fp8 && fp8(p))) ? DType::e4m3 : recipe.weight;
}

// Tensors one after the other in one block of memory: counted first, then placed.
class Layout {
 public:
  explicit Layout(void* memory = nullptr) : data_(static_cast<uint8_t*>(memory)) {}
  Tensor take(DType dtype, int64_t rows, int64_t cols) {
    Tensor t = make_tensor(data_ ? data_ + bytes_ : nullptr, dtype, rows, cols);
    bytes_ += aligned(t.size() * size_of(dtype));
    return t;
  }
  // E4M3 with scales of blocks, `part_rows` rows a matrix.
  Tensor take_blocks(int64_t rows, int64_t cols, int64_t part_rows) {
    Tensor t = take(DType::e4m3, rows, cols);
    const Tensor scales = take(DType::f32, rows / part_rows * blocks(part_rows), blocks(cols));
    t.scales = static_cast<float*>(scales.data);
    t.scale_ld = scales.cols;
    t.part_rows = part_rows;
    return t;
  }
  int64_t bytes() const { return bytes_; }

 private:
  uint8_t* data_;
  int64_t bytes_ = 0;
};

}  // namespace

ParamSet::ParamSet(Device& device, const ModelConfig& config, Recipe recipe, const Options& options)
    : table_(parameter_table(config)), recipe_(recipe) {
  if (recipe_.fp8) recipe_.power_of_two = config.fp8_power_of_two_scales;
  const auto place = [&](Layout weights, Layout gradients) {
    weights_.clear(), transposed_.clear(), gradients_.clear();
    std::optional<Tensor> both;  // attn.q_a's transpose and, beside it, attn.kv_a's, which comes later
    for (const Param& p : table_) {
      const DType dtype = weight_dtype(p, recipe, options.fp8);
      const bool e4m3 = dtype == DType::e4m3, turned = e4m3 && recipe.fp8 && options.gradients;
      weights_.push_back(e4m3 ? weights.take_blocks(p.rows, p.cols, p.part_rows)
                              : weights.take(dtype, p.rows, p.cols));
      if (turned && p.name.ends_with(".attn.q_a") && p.rows % kScaleBlock == 0) {
        both = weights.take_blocks(p.cols, p.rows + config.kv_lora_rank + config.qk_rope_head_dim, p.cols);
        transposed_.push_back(both->data ? both->slice_cols(0, p.rows) : *both);
      } else if (turned && p.name.ends_with(".attn.kv_a") && both) {
        transposed_.push_back(both->data ? both->slice_cols(both->cols - p.rows, p.rows) : *both);
        both.reset();
      } else {
        transposed_.push_back(turned ? weights.take_blocks(p.experts * p.cols, p.rows / p.experts, p.cols)
                                     : Tensor{});
      }
      if (options.gradients)
        gradients_.push_back(p.trained() ? gradients.take(recipe.stat, p.rows, p.cols) : Tensor{});
    }
    return std::pair{weights.bytes(), gradients.bytes()};
  };
  const auto [weight_bytes, gradient_bytes] = place(Layout(), Layout());
  weight_buffer_ = Buffer(device, weight_bytes, "weights");
  if (options.gradients) gradient_buffer_ = Buffer(device, gradient_bytes, "gradients");
  place(Layout(weight_buffer_.data()), Layout(gradient_buffer_.data()));
  for (size_t i = 0; i < table_.size(); ++i) index_[table_[i].name] = i;
}

size_t ParamSet::index(const std::string& name) const {
  const auto it = index_.find(name);
  CHECK(it != index_.end(), "no parameter " + name);
  return it->second;
}

Tensor ParamSet::transposed_both(const std::string& left, const std::string& right) const {
  Tensor both = transposed(left);
  const Tensor beside = transposed(right);
  if (!both || both.ld < both.cols + beside.cols) return {};
  both.cols += beside.cols;
  CHECK(beside.data == both.slice_cols(both.cols - beside.cols, beside.cols).data, left + " and " + right);
  return both;
}

Tensor ParamSet::scales(size_t i) const {
  const Tensor& t = weights_[i];
  CHECK(t.scales != nullptr, table_[i].name + " has no scales");
  return make_tensor(t.scales, DType::f32, scale_rows(table_[i]), t.scale_ld);
}

void quantise_weight(Stream& s, const ParamSet& params, size_t i, const Tensor& numbers) {
  on(s).quantize_weight({.x = numbers,
                         .y = params.weight(i),
                         .transposed = params.transposed(i),
                         .experts = params.table()[i].experts,
                         .power_of_two = params.recipe().power_of_two});
}

void transpose_weight(Stream& s, const ParamSet& params, size_t i) {
  if (!params.transposed(i)) return;
  on(s).quantize_weight({.x = params.weight(i),
                         .transposed = params.transposed(i),
                         .experts = params.table()[i].experts,
                         .power_of_two = params.recipe().power_of_two});
}

void upload_quantised(Stream& s, const ParamSet& params, size_t i, const std::vector<float>& numbers) {
  ThreadPool threads(available_cpus());
  upload_quantised_rows(s, params, i, 0, params.table()[i].rows, numbers.data(), threads);
  transpose_weight(s, params, i);
}

void upload_quantised_rows(Stream& s, const ParamSet& params, size_t i, int64_t first_row, int64_t rows,
                           const float* numbers, ThreadPool& threads) {
  const Param& p = params.table()[i];
  CHECK(first_row % p.part_rows % kScaleBlock == 0, p.name);
  const int64_t first_block =
      first_row / p.part_rows * blocks(p.part_rows) + first_row % p.part_rows / kScaleBlock;
  std::vector<uint8_t> codes(size_t(rows * p.cols));
  std::vector<float> scales;
  const QuantiseOptions options{
      .format = params.recipe().power_of_two ? ScaleFormat::power_of_two : ScaleFormat::float32,
      .stored_as_bf16 = true,  // no trace of older scales is looked for
      .pool = &threads,
      .name = p.name};
  for (int64_t row = 0; row < rows;) {
    const int64_t n = std::min(p.part_rows - (first_row + row) % p.part_rows, rows - row);
    const float* x = numbers + row * p.cols;
    const size_t at = scales.size();
    scales.resize(at + size_t(blocks(n) * blocks(p.cols)));
    choose_scales(x, n, p.cols, options, scales.data() + at);
    quantise(x, scales.data() + at, n, p.cols, options, codes.data() + row * p.cols);
    row += n;
  }
  on(s).upload(codes.data(), params.weight(i).slice_rows(first_row, rows));
  const int64_t block_rows = int64_t(scales.size()) / blocks(p.cols);
  on(s).upload(scales.data(), params.scales(i).slice_rows(first_block, block_rows));
}

void initialize(Stream& s, const ParamSet& params, const ModelConfig& config, uint64_t seed,
                const std::function<Tensor(size_t param)>& masters) {
  ThreadPool threads(available_cpus());  // a number depends on its place only
  for (size_t i = 0; i < params.table().size(); ++i) {
    const Param& p = params.table()[i];
    const Tensor w = params.weight(i);
    const Tensor master = masters ? masters(i) : Tensor{};  // w itself where the weights are the best copy
    if (p.is_vector()) {
      const double value = p.kind == ParamKind::norm ? 1 : 0;
      on(s).fill({.y = w, .value = value});
      if (master) on(s).fill({.y = master, .value = value});
      continue;
    }
    const auto draw = [&]<class T>(const auto& round) {
      std::vector<T> values(p.size());
      threads.parallel_ranges(p.size(), 1 << 14, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k)
          values[k] = round(config.initializer_range * random_normal(seed, i, k));
      });
      return values;
    };
    const auto to_double = [](double x) { return x; };
    const auto to_float = [](double x) { return float(x); };
    const auto to_bf16 = [](double x) { return bf16(float(x)); };
    switch (w.dtype) {
      case DType::f64: on(s).upload(draw.operator()<double>(to_double).data(), w); break;
      case DType::f32: on(s).upload(draw.operator()<float>(to_float).data(), w); break;
      case DType::e4m3:
        if (master) {
          on(s).upload(draw.operator()<float>(to_float).data(), master);
          quantise_weight(s, params, i, master);
        } else {
          upload_quantised(s, params, i, draw.operator()<float>(to_float));
        }
        break;
      default:
        if (master) {
          on(s).upload(draw.operator()<float>(to_float).data(), master);
          on(s).cast({.x = master, .y = w});
        } else {
          on(s).upload(draw.operator()<bf16>(to_bf16).data(), w);
        }
    }
  }
}

}  // namespace cachalot
