// Times one operation at a time with a cold cache: what `cachalot bench ops`, `products` and `attention`
// share.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/buffer.h"

namespace cachalot::cli {

struct OpTime {
  std::string op, shape;
  double seconds = 0;  // of one call with a cold cache
  double bytes = 0;    // that it reads and writes at least; 0: not bound by memory
  double flops = 0;    // 0: not bound by arithmetic
  bool graph = false;  // from a captured graph (time_in_graph)
  double copy_seconds =
      0;  // of copying so many bytes (half read, half written) by the same clock; 0: not measured
};
using ShowTime = std::function<void(const OpTime&)>;

std::string by(int64_t rows, int64_t cols);  // "4096 x 7168"

// What is overwritten between two calls so that no cache is warm. Memory of one `Device`, shared by all
// groups.
class CacheFlush {
 public:
  explicit CacheFlush(Device& device);
  void queue(Stream& s, int i) const;

 private:
  Buffer memory_;
};

// Operands of one group of operations, gone with it, and the clock.
class OpBench {
 public:
  OpBench(Device& device, Stream& s, const CacheFlush& flush, const ShowTime& show)
      : device_(device), s_(s), flush_(flush), show_(show) {}

  Tensor raw(DType dtype, int64_t rows, int64_t cols);
  // Normal numbers: the first rows are drawn and the others are copies of them.
  Tensor normal(DType dtype, int64_t rows, int64_t cols, float width = 1);
  Tensor constant(DType dtype, int64_t rows, int64_t cols, double value);
  // Room for FP8 codes with row tiles, and for FP8 weights with blocks of 128 x 128.
  Tensor row_tiles(int64_t rows, int64_t cols);
  Tensor blocks(int64_t rows, int64_t cols, int64_t part_rows);
  // The same, holding normal numbers.
  Tensor normal_row_tiles(int64_t rows, int64_t cols);
  Tensor normal_blocks(int64_t rows, int64_t cols, int64_t part_rows);
  // [rows, cols] of f(i).
  template <class F> Tensor integers(int64_t rows, int64_t cols, const F& f) {
    std::vector<int32_t> values;
    for (int64_t i = 0; i < rows * cols; ++i) values.push_back(int32_t(f(i)));
    return upload(values, rows, cols);
  }

  using Call = std::function<void(Backend&)>;
  // Median of 20 calls, each after a flush, by the device's own clock: with the launch's few microseconds.
  void time(const OpTime& what, const Call& call);
  // And copy_seconds: what is short pays for its launch, whatever it does.
  void time_beside_copy(const OpTime& what, const Call& call);
  // call(b, i) uses the i-th of `copies` sets of operands, which together overfill the caches: seconds a call
  // of a captured graph that goes round them, median of 5. Nothing where the device captures none.
  void time_in_graph(const OpTime& what, int copies, const std::function<void(Backend&, int)>& call);

 private:
  Tensor upload(const std::vector<int32_t>& values, int64_t rows, int64_t cols);
  double once(const std::function<void()>& queue);
  double median_of_cold(const Call& call);

  Device& device_;
  Stream& s_;
  const CacheFlush& flush_;
  const ShowTime& show_;
  std::vector<Buffer> buffers_;
};

}  // namespace cachalot::cli
