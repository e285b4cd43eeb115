// For tests of operations, layers and models: seeded tensors on any device, and comparison by the house
// metric. Inside namespace cachalot, `testing::` finds these and GoogleTest's names alike.
//
//   auto device = open_device("cpu");                  auto oracle = open_device("ref");
//   Stream s(*device), ref(*oracle);
//   TestTensors t(*device, s, 7), u(*oracle, ref, 7);  // one seed, one order of calls: the same numbers
//   Tensor x = t.normal(DType::f32, 5, 3), y = t.garbage(DType::f32, 5, 7);  // and so on for u
//   on(s).gemm({...});
//   EXPECT_METRIC(read(s, y), read(ref, y_ref), 1e-12);
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "backend/buffer.h"
#include "base/rng.h"

namespace cachalot::testing {

using namespace ::testing;  // NOLINT: so that this namespace hides none of GoogleTest's names

// One number of host memory, without its e4m3 scale.
inline double get_number(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::f64: return static_cast<const double*>(data)[i];
    case DType::f32: return static_cast<const float*>(data)[i];
    case DType::bf16: return float(static_cast<const bf16*>(data)[i]);
    case DType::e4m3: return float(static_cast<const e4m3*>(data)[i]);
    case DType::i32: return static_cast<const int32_t*>(data)[i];
  }
  return 0;
}
inline void set_number(void* data, DType dtype, int64_t i, double x) {
  switch (dtype) {
    case DType::f64: static_cast<double*>(data)[i] = x; break;
    case DType::f32: static_cast<float*>(data)[i] = float(x); break;
    case DType::bf16: static_cast<bf16*>(data)[i] = bf16(float(x)); break;
    case DType::e4m3: static_cast<e4m3*>(data)[i] = e4m3(float(x)); break;
    case DType::i32: static_cast<int32_t*>(data)[i] = int32_t(x); break;
  }
}

// A contiguous tensor in host memory, with its scales: error_metric() and the loaders read it like any other.
class HostTensor {
 public:
  HostTensor(DType dtype, int64_t rows, int64_t cols)
      : bytes_(size_t(rows * cols * size_of(dtype) / 8 + 1)),
        view_(make_tensor(bytes_.data(), dtype, rows, cols)) {}
  HostTensor(HostTensor&&) = default;  // a vector's bytes stay where they are
  const Tensor& tensor() const { return view_; }
  operator const Tensor&() const { return view_; }
  void* data() { return bytes_.data(); }
  double operator()(int64_t r, int64_t c) const {
    return get_number(view_.data, view_.dtype, r * view_.cols + c) * view_.scale(r, c);
  }
  // Scales that lie as those of `like` do, scale_ld apart.
  void set_scales(std::vector<float> scales, int64_t scale_ld, const Tensor& like) {
    scales_ = std::move(scales);
    view_.scales = scales_.data();
    view_.scale_ld = scale_ld, view_.part_rows = like.part_rows, view_.first_row = like.first_row;
    view_.scale_tile = like.scale_tile;
  }

 private:
  std::vector<double> bytes_;  // of double: aligned for every format
  std::vector<float> scales_;
  Tensor view_;
};

// The scales of codes as a tensor: [block rows, block columns], or of row tiles [tile columns, rows].
inline Tensor scales_of(const Tensor& t) {
  CHECK(t.scales && t.size() > 0, t.describe());
  const int64_t across = (t.cols + kScaleBlock - 1) / kScaleBlock;
  const bool row = t.scale_tile == ScaleTile::row;
  return {.data = t.scales,
          .dtype = DType::f32,
          .rows = row ? across : t.scale_row(t.rows - 1) + 1,
          .cols = row ? t.rows : across,
          .ld = t.scale_ld};
}

// Waits for what is queued on `s`.
inline HostTensor download(Stream& s, const Tensor& t) {
  HostTensor host(t.dtype, t.rows, t.cols);
  if (t.size() > 0) on(s).download(t, host.data());
  if (t.scales && t.size() > 0) {
    const Tensor from = scales_of(t);
    std::vector<float> scales(size_t(from.size()));
    on(s).download(from, scales.data());
    host.set_scales(std::move(scales), from.cols, t);
  }
  on(s).synchronize();
  return host;
}

// All values in rows, e4m3 times its scales. Waits for what is queued on `s`.
inline std::vector<double> read(Stream& s, const Tensor& t) {
  const HostTensor host = download(s, t);
  std::vector<double> values;
  values.reserve(size_t(t.size()));
  for (int64_t r = 0; r < t.rows; ++r)
    for (int64_t c = 0; c < t.cols; ++c) values.push_back(host(r, c));
  return values;
}
inline std::vector<int32_t> read_indices(Stream& s, const Tensor& t) {
  CHECK(t.dtype == DType::i32);
  const std::vector<double> values = read(s, t);
  return {values.begin(), values.end()};
}
// The bits as they lie in memory, row by row without padding: for "the same bits".
inline std::string read_bits(Stream& s, const Tensor& t) {
  HostTensor host = download(s, t);
  return {static_cast<const char*>(host.data()), size_t(t.size() * size_of(t.dtype))};
}
inline double read_number(Stream& s, const Tensor& t) {
  CHECK(t.size() == 1, t.describe());
  return read(s, t)[0];
}

// The first `count` numbers of a stream, as `draw` (random_normal, random_uniform) gives them. Every device
// and most tests begin the same streams, and drawing was more than half of the time of all tests of
// operations: what was drawn is kept, until it is more than kMost in all.
inline std::vector<double> draws(double (*draw)(uint64_t, uint64_t, uint64_t), uint64_t seed, uint64_t stream,
                                 size_t count) {
  constexpr size_t kMost = size_t(24) << 20;
  static std::mutex mutex;
  static std::map<std::tuple<decltype(draw), uint64_t, uint64_t>, std::vector<double>> kept;
  static size_t total = 0;
  const std::lock_guard lock(mutex);
  std::vector<double>* drawn = &kept[{draw, seed, stream}];
  if (count > drawn->size() && total + count - drawn->size() > kMost) {
    kept.clear();
    total = 0;
    drawn = &kept[{draw, seed, stream}];
  }
  for (size_t i = drawn->size(); i < count; ++i, ++total) drawn->push_back(draw(seed, stream, i));
  return {drawn->begin(), drawn->begin() + ptrdiff_t(count)};
}

// Tensors that live until the end of the test. The k-th one of a seed holds the same numbers on every device
// (each rounded to its format). `padding` puts that many columns of NaN behind each row: ld > cols.
class TestTensors {
 public:
  TestTensors(Device& device, Stream& stream, uint64_t seed = 1)
      : device_(device), stream_(stream), seed_(seed) {}

  Tensor normal(DType dtype, int64_t rows, int64_t cols, double scale = 1, int64_t padding = 0) {
    std::vector<double> values = draws(random_normal, seed_, ++count_, size_t(rows * cols));
    for (double& x : values) x *= scale;
    return make(dtype, rows, cols, values, padding);
  }
  Tensor uniform(DType dtype, int64_t rows, int64_t cols, double low, double high, int64_t padding = 0) {
    std::vector<double> values = draws(random_uniform, seed_, ++count_, size_t(rows * cols));
    for (double& x : values) x = low + (high - low) * x;
    return make(dtype, rows, cols, values, padding);
  }
  // FP8 codes with a different scale in every block; `part_rows` as in Tensor. `padding` is of the codes.
  Tensor normal_e4m3(int64_t rows, int64_t cols, int64_t part_rows = 0, int64_t padding = 0) {
    Tensor t = normal(DType::e4m3, rows, cols, 20, padding);
    t.part_rows = part_rows;
    t.scale_ld = (cols + kScaleBlock - 1) / kScaleBlock;
    const int64_t scale_rows = rows == 0 ? 0 : t.scale_row(rows - 1) + 1;
    t.scales = static_cast<float*>(uniform(DType::f32, scale_rows, t.scale_ld, 0.01, 0.05).data);
    return t;
  }
  // The same with a scale for every 128 numbers of a row. Rows begin on 16 bytes, behind `padding` columns at
  // least.
  Tensor normal_row_tiles(int64_t rows, int64_t cols, int64_t padding = 0) {
    Tensor t = normal(DType::e4m3, rows, cols, 20, (cols + padding + 15) / 16 * 16 - cols);
    row_tile_scales(t);
    const int64_t tiles = (cols + kScaleBlock - 1) / kScaleBlock, gap = t.scale_ld - rows;
    t.scales = static_cast<float*>(uniform(DType::f32, tiles, rows, 0.01, 0.05, gap).data);
    return t;
  }
  // Codes and scales of NaN: what quantisers must overwrite, row tiles and blocks.
  Tensor garbage_row_tiles(int64_t rows, int64_t cols, int64_t padding = 0) {
    Tensor t = garbage(DType::e4m3, rows, cols, (cols + padding + 15) / 16 * 16 - cols);
    row_tile_scales(t);
    t.scales = static_cast<float*>(
        garbage(DType::f32, (cols + kScaleBlock - 1) / kScaleBlock, rows, t.scale_ld - rows).data);
    return t;
  }
  Tensor garbage_e4m3(int64_t rows, int64_t cols, int64_t part_rows = 0, int64_t padding = 0) {
    Tensor t = garbage(DType::e4m3, rows, cols, padding);
    t.part_rows = part_rows;
    t.scale_ld = (cols + kScaleBlock - 1) / kScaleBlock;
    const int64_t scale_rows = rows == 0 ? 0 : t.scale_row(rows - 1) + 1;
    t.scales = static_cast<float*>(garbage(DType::f32, scale_rows, t.scale_ld).data);
    return t;
  }
  Tensor zeros(DType dtype, int64_t rows, int64_t cols, int64_t padding = 0) {
    return make(dtype, rows, cols, std::vector<double>(size_t(rows * cols), 0.0), padding);
  }
  // NaN everywhere (indices: -1): what outputs must overwrite and padding must keep.
  Tensor garbage(DType dtype, int64_t rows, int64_t cols, int64_t padding = 0) {
    return make(dtype, rows, cols, {}, padding);
  }
  Tensor indices(const std::vector<int32_t>& values) { return indices(1, int64_t(values.size()), values); }
  Tensor indices(int64_t rows, int64_t cols, const std::vector<int32_t>& values) {
    return make(DType::i32, rows, cols, {values.begin(), values.end()}, 0);
  }
  // The given numbers, in rows.
  Tensor values(DType dtype, int64_t rows, int64_t cols, const std::vector<double>& values,
                int64_t padding = 0) {
    return make(dtype, rows, cols, values, padding);
  }
  // What `t` holds now, on this device or another one, in the same format, contiguous or padded.
  Tensor copy(Stream& from, const Tensor& t, int64_t padding = 0) {
    CHECK(!t.scales, "copy of a scaled tensor: make both with normal_e4m3 and one seed");
    return make(t.dtype, t.rows, t.cols, read(from, t), padding);
  }

  // Whether the columns behind each row of `t`, made above, still hold the bytes they were made with, and
  // those of its scales.
  AssertionResult padding_intact(const Tensor& t) {
    if (t.scales && t.size() > 0) {
      const AssertionResult scales = padding_intact(scales_of(t));
      if (!scales) return scales;
    }
    Tensor whole = t;
    whole.cols = t.ld;
    whole.scales = nullptr;
    HostTensor host = download(stream_, whole);
    const uint8_t* bytes = static_cast<const uint8_t*>(host.data());
    const int64_t size = size_of(t.dtype);
    for (int64_t r = 0; r < t.rows; ++r)
      for (int64_t b = (r * t.ld + t.cols) * size; b < (r + 1) * t.ld * size; ++b)
        if (bytes[b] != 0xFF)
          return AssertionFailure() << "row " << r << " was written behind its " << t.cols << " columns";
    return AssertionSuccess();
  }

 private:
  static void row_tile_scales(Tensor& t) {
    t.scale_tile = ScaleTile::row;
    t.scale_ld = (t.rows + 7) / 4 * 4;  // at least one more than rows
  }
  // Bytes 0xFF are NaN in every floating format; empty `values`: nothing but those.
  Tensor make(DType dtype, int64_t rows, int64_t cols, const std::vector<double>& values, int64_t padding) {
    const int64_t ld = cols + padding, bytes = rows * ld * size_of(dtype);
    CHECK(values.empty() || int64_t(values.size()) == rows * cols);
    std::vector<uint64_t> host(size_t(bytes / 8 + 1), ~uint64_t(0));
    if (!values.empty())
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < cols; ++c)
          set_number(host.data(), dtype, r * ld + c, values[size_t(r * cols + c)]);
    buffers_.emplace_back(device_, bytes, "test");
    Tensor t = make_tensor(buffers_.back().data(), dtype, rows, ld);
    if (bytes > 0) on(stream_).upload(host.data(), t);
    t.cols = cols;
    return t;
  }

  Device& device_;
  Stream& stream_;
  uint64_t seed_, count_ = 0;
  std::vector<Buffer> buffers_;
};

// |x-y|^2 / (|x|^2 + |y|^2); NaN when the sizes differ.
inline double metric(const std::vector<double>& x, const std::vector<double>& y) {
  if (x.size() != y.size()) return std::nan("");
  const auto view = [](const std::vector<double>& v) {
    return make_tensor(const_cast<double*>(v.data()), DType::f64, 1, int64_t(v.size()));
  };
  return error_metric(view(x), view(y));
}
inline double metric(const Tensor& x, const Tensor& y) { return error_metric(x, y); }  // host memory
inline double metric(const HostTensor& x, const HostTensor& y) { return error_metric(x, y); }

// sum of products: the scalar whose derivative by y is dy, as seed of a backward under test.
inline double dot(Stream& s, const Tensor& a, const Tensor& b) {
  const std::vector<double> x = read(s, a), y = read(s, b);
  CHECK(x.size() == y.size());
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}

// d loss() / d x by central differences, number after number; for f64 on "ref". With numbers and third
// derivatives around 1 the default step leaves some 10 digits: EXPECT_METRIC(..., kFiniteDifferences).
inline constexpr double kFiniteDifferences = 1e-17;
inline std::vector<double> numeric_gradient(Stream& s, const Tensor& x, const std::function<double()>& loss,
                                            double step = 1e-5) {
  CHECK(x.dtype == DType::f64, "finite differences need f64");
  std::vector<double> values = read(s, x), gradient(values.size());
  const auto loss_at = [&](size_t i, double value) {
    const double kept = std::exchange(values[i], value);
    on(s).upload(values.data(), x);
    const double l = loss();
    values[i] = kept;
    return l;
  };
  for (size_t i = 0; i < values.size(); ++i)
    gradient[i] = (loss_at(i, values[i] + step) - loss_at(i, values[i] - step)) / (2 * step);
  on(s).upload(values.data(), x);
  on(s).synchronize();
  return gradient;
}

template <class A, class B> AssertionResult metric_at_most(const char* a_text, const char* b_text,
                                                           const char*, const A& a, const B& b,
                                                           double bound) {
  const double m = metric(a, b);
  if (m <= bound) return AssertionSuccess();
  AssertionResult failure = AssertionFailure();
  failure << fmt::format("metric({}, {}) is {:.3g}, the bound {:.3g}", a_text, b_text, m, bound);
  if constexpr (std::is_same_v<A, std::vector<double>> && std::is_same_v<B, std::vector<double>>) {
    if (a.size() != b.size()) return failure << fmt::format("; {} numbers against {}", a.size(), b.size());
    size_t worst = 0;
    const auto distance = [&](size_t i) {
      const double d = std::abs(a[i] - b[i]);
      return std::isnan(d) ? INFINITY : d;
    };
    for (size_t i = 1; i < a.size(); ++i)
      if (distance(i) > distance(worst)) worst = i;
    if (!a.empty()) failure << fmt::format("; worst at {}: {:.9g} against {:.9g}", worst, a[worst], b[worst]);
  }
  return failure;
}

}  // namespace cachalot::testing

// Two std::vector<double>, HostTensors or Tensors in host memory.
#define EXPECT_METRIC(a, b, bound) EXPECT_PRED_FORMAT3(::cachalot::testing::metric_at_most, a, b, bound)
