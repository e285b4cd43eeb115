#include "model/params.h"

#include <fmt/format.h>

#include "base/rng.h"
#include "base/thread_pool.h"

namespace cachalot {

namespace {

constexpr int64_t kAlign = 256;

int64_t aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

int64_t blocks(int64_t n) { return (n + kScaleBlock - 1) / kScaleBlock; }

int64_t scale_rows(const Param& p) { return p.rows / p.part_rows * blocks(p.part_rows); }

DType weight_dtype(const Param& p, Recipe recipe, const std::function<bool(const Param&)>& fp8) {
  if (p.kind == ParamKind::gate_bias) return DType::f32;
  if (p.kind == ParamKind::norm || p.kind == ParamKind::gate) return recipe.stat;
  return fp8 && p.can_be_fp8() && fp8(p) ? DType::e4m3 : recipe.weight;
}

}  // namespace

ParamSet::ParamSet(Device& device, const ModelConfig& config, Recipe recipe, const Options& options)
    : table_(parameter_table(config)), recipe_(recipe) {
  int64_t weight_bytes = 0, gradient_bytes = 0;
  for (size_t i = 0; i < table_.size(); ++i) {
    const Param& p = table_[i];
    index_[p.name] = i;
    const DType dtype = weight_dtype(p, recipe, options.fp8);
    weight_bytes += aligned(p.size() * size_of(dtype));
    if (dtype == DType::e4m3) weight_bytes += aligned(scale_rows(p) * blocks(p.cols) * 4);
    if (p.trained()) gradient_bytes += aligned(p.size() * size_of(recipe.stat));
  }
  weight_buffer_ = Buffer(device, weight_bytes, "weights");
  if (options.gradients) gradient_buffer_ = Buffer(device, gradient_bytes, "gradients");

  auto* w = static_cast<uint8_t*>(weight_buffer_.data());
  auto* g = static_cast<uint8_t*>(gradient_buffer_.data());
  for (const Param& p : table_) {
    const DType dtype = weight_dtype(p, recipe, options.fp8);
    Tensor t = make_tensor(w, dtype, p.rows, p.cols);
    w += aligned(p.size() * size_of(dtype));
    if (dtype == DType::e4m3) {
      t.scales = reinterpret_cast<const float*>(w);
      t.scale_ld = blocks(p.cols);
      t.part_rows = p.part_rows;
      w += aligned(scale_rows(p) * t.scale_ld * 4);
    }
    weights_.push_back(t);
    if (!options.gradients) continue;
    gradients_.push_back(p.trained() ? make_tensor(g, recipe.stat, p.rows, p.cols) : Tensor{});
    if (p.trained()) g += aligned(p.size() * size_of(recipe.stat));
  }
}

size_t ParamSet::index(const std::string& name) const {
  const auto it = index_.find(name);
  CHECK(it != index_.end(), "no parameter " + name);
  return it->second;
}

Tensor ParamSet::scales(size_t i) const {
  const Tensor& t = weights_[i];
  CHECK(t.scales != nullptr, table_[i].name + " has no scales");
  return make_tensor(const_cast<float*>(t.scales), DType::f32, scale_rows(table_[i]), t.scale_ld);
}

void initialize(Stream& s, const ParamSet& params, const ModelConfig& config, uint64_t seed) {
  ThreadPool threads(available_cpus());  // a number depends on its place only
  for (size_t i = 0; i < params.table().size(); ++i) {
    const Param& p = params.table()[i];
    const Tensor w = params.weight(i);
    CHECK(w.dtype != DType::e4m3, "random weights are not quantised");
    if (p.is_vector()) {
      on(s).fill({.y = w, .value = p.kind == ParamKind::norm ? 1.0 : 0.0});
      continue;
    }
    const auto fill = [&]<class T>(T) {
      std::vector<T> values(p.size());
      threads.parallel_ranges(p.size(), 1 << 14, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
          const double x = config.initializer_range * random_normal(seed, i, k);
          if constexpr (std::is_same_v<T, double>) values[k] = x;
          else values[k] = T(float(x));
        }
      });
      on(s).upload(values.data(), w);
    };
    switch (w.dtype) {
      case DType::f64: fill(double{}); break;
      case DType::f32: fill(float{}); break;
      default: fill(bf16{}); break;
    }
  }
}

}  // namespace cachalot
