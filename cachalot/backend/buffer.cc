#include "backend/buffer.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/text.h"

namespace cachalot {

namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kMostBytes = int64_t{1} << 50;  // far beyond any machine: a product that overflowed

int64_t tensor_bytes(DType dtype, int64_t rows, int64_t cols) {
  CHECK(rows >= 0 && cols >= 0, fmt::format("[{}, {}]", rows, cols));
  CHECK(cols == 0 || rows <= kMostBytes / size_of(dtype) / cols, fmt::format("[{}, {}]", rows, cols));
  return rows * cols * size_of(dtype);
}

}  // namespace

Buffer::Buffer(Device& device, int64_t bytes, std::string_view purpose) : device_(&device), bytes_(bytes) {
  CHECK(bytes >= 0, fmt::format("{}: {} bytes", purpose, bytes));
  data_ = device.take(bytes);
  if (!data_)
    throw Error(fmt::format("{} needs {} on {}; free: {}", purpose, human_bytes(double(bytes)), device.name(),
                            human_bytes(double(device.free_bytes()))))
        .hint("use a smaller model, batch or context, or a machine with more memory");
}

Tensor Arena::take(DType dtype, int64_t rows, int64_t cols) {
  const int64_t bytes = tensor_bytes(dtype, rows, cols);
  const int64_t end = used_ + (bytes + kAlignment - 1) / kAlignment * kAlignment;
  CHECK(buffer_.data() && used_ + bytes <= capacity(),
        fmt::format("{} [{}, {}] needs {} bytes; {} of {} are used", name_of(dtype), rows, cols, bytes, used_,
                    capacity()));
  const Tensor t = make_tensor(static_cast<uint8_t*>(buffer_.data()) + used_, dtype, rows, cols);
  used_ = end;
  high_water_ = std::max(high_water_, used_);
  return t;
}

}  // namespace cachalot
