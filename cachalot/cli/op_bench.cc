#include "cli/op_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "base/rng.h"

namespace cachalot::cli {

namespace {

constexpr int64_t kFlushed = int64_t(256) << 20;  // bytes written between two calls: no cache is larger
constexpr int kCalls = 20;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int64_t tiles(int64_t n) { return (n + kScaleBlock - 1) / kScaleBlock; }

double median(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

}  // namespace

std::string by(int64_t rows, int64_t cols) { return fmt::format("{} x {}", rows, cols); }

CacheFlush::CacheFlush(Device& device) : memory_(device, kFlushed, "what empties the cache") {}

void CacheFlush::queue(Stream& s, int i) const {
  on(s).fill({.y = make_tensor(memory_.data(), DType::f32, 1, kFlushed / 4), .value = double(i)});
}

Tensor OpBench::raw(DType dtype, int64_t rows, int64_t cols) {
  buffers_.emplace_back(device_, rows * cols * size_of(dtype), "operands of an operation");
  return make_tensor(buffers_.back().data(), dtype, rows, cols);
}

Tensor OpBench::normal(DType dtype, int64_t rows, int64_t cols, float width) {
  const int64_t drawn = std::clamp<int64_t>((int64_t(1) << 20) / cols, 1, rows);
  std::vector<float> numbers(size_t(drawn * cols));
  for (size_t i = 0; i < numbers.size(); ++i)
    numbers[i] = width * float(random_normal(1, uint64_t(buffers_.size()), i));
  const Tensor t = raw(dtype, rows, cols);
  Buffer memory(device_, drawn * cols * 4, "random numbers");
  const Tensor first = make_tensor(memory.data(), DType::f32, drawn, cols);
  on(s_).upload(numbers.data(), first);
  for (int64_t r = 0; r < rows; r += drawn) {
    const int64_t n = std::min(drawn, rows - r);
    on(s_).cast({.x = first.slice_rows(0, n), .y = t.slice_rows(r, n)});
  }
  on(s_).synchronize();
  return t;
}

Tensor OpBench::constant(DType dtype, int64_t rows, int64_t cols, double value) {
  const Tensor t = raw(dtype, rows, cols);
  on(s_).fill({.y = t, .value = value});
  return t;
}

Tensor OpBench::row_tiles(int64_t rows, int64_t cols) {
  Tensor t = raw(DType::e4m3, rows, cols);
  t.scale_ld = (rows + 3) / 4 * 4;
  t.scales = static_cast<float*>(raw(DType::f32, tiles(cols), t.scale_ld).data);
  t.scale_tile = ScaleTile::row;
  return t;
}

Tensor OpBench::blocks(int64_t rows, int64_t cols, int64_t part_rows) {
  Tensor t = raw(DType::e4m3, rows, cols);
  t.scale_ld = tiles(cols);
  t.scales = static_cast<float*>(raw(DType::f32, rows / part_rows * tiles(part_rows), t.scale_ld).data);
  t.part_rows = part_rows;
  return t;
}

Tensor OpBench::normal_row_tiles(int64_t rows, int64_t cols) {
  const Tensor y = row_tiles(rows, cols);
  const Tensor x = normal(DType::bf16, rows, cols);
  on(s_).quantize({.x = x, .y = y});
  on(s_).synchronize();
  buffers_.pop_back();  // x
  return y;
}

Tensor OpBench::normal_blocks(int64_t rows, int64_t cols, int64_t part_rows) {
  const Tensor y = blocks(rows, cols, part_rows);
  const Tensor x = normal(DType::bf16, rows, cols);
  on(s_).quantize_weight({.x = x, .y = y});
  on(s_).synchronize();
  buffers_.pop_back();
  return y;
}

Tensor OpBench::upload(const std::vector<int32_t>& values, int64_t rows, int64_t cols) {
  const Tensor t = raw(DType::i32, rows, cols);
  on(s_).upload(values.data(), t);
  return t;
}

double OpBench::once(const std::function<void()>& queue) {
  const double start = now();
  const EventPtr begin = on(s_).record();
  queue();
  const EventPtr end = on(s_).record();
  on(s_).synchronize();
  const double host = now() - start, device = end->seconds_after(*begin);
  return device >= 0 ? device : host;
}

double OpBench::median_of_cold(const Call& call) {
  call(on(s_));
  std::vector<double> times;
  for (int i = 0; i < kCalls; ++i) {
    flush_.queue(s_, i);  // the call is queued while a card is still at this
    times.push_back(once([&] { call(on(s_)); }));
  }
  return median(times);
}

void OpBench::time(const OpTime& what, const Call& call) {
  OpTime t = what;
  t.seconds = median_of_cold(call);
  show_(t);
}

void OpBench::time_beside_copy(const OpTime& what, const Call& call) {
  OpTime t = what;
  t.seconds = median_of_cold(call);
  if (const int64_t numbers = int64_t(what.bytes / 4); numbers > 0) {
    const Tensor from = raw(DType::bf16, 1, numbers), to = raw(DType::bf16, 1, numbers);
    t.copy_seconds = median_of_cold([&](Backend& b) { b.cast({.x = from, .y = to}); });
    buffers_.pop_back();
    buffers_.pop_back();
  }
  show_(t);
}

void OpBench::time_in_graph(const OpTime& what, int copies, const std::function<void(Backend&, int)>& call) {
  call(on(s_), 0);  // what a first call takes is taken before the capture
  on(s_).synchronize();
  const int calls = (kCalls + copies - 1) / copies * copies;
  const GraphPtr graph = on(s_).capture([&] {
    for (int i = 0; i < calls; ++i) call(on(s_), i % copies);
  });
  if (!graph) return;
  std::vector<double> times;
  for (int i = 0; i < 5; ++i) {
    flush_.queue(s_, i);
    times.push_back(once([&] { on(s_).replay(graph); }) / calls);
  }
  OpTime t = what;
  t.seconds = median(times), t.graph = true;
  show_(t);
}

}  // namespace cachalot::cli
