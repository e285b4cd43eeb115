#include "backend/ref/ref_backend.h"

#include <cstring>

#include "backend/host_memory.h"

namespace cachalot {

namespace {

class RefDevice final : public Device {
 public:
  std::string name() const override { return "ref (double, scalar)"; }
  void* take(int64_t bytes) override { return take_host_memory(bytes); }
  void give(void* data, int64_t) noexcept override { give_host_memory(data); }
  int64_t free_bytes() const override { return host_free_bytes(); }
  std::unique_ptr<Backend> open_backend() override { return std::make_unique<RefBackend>(); }
};

}  // namespace

void RefBackend::upload(const void* host, Tensor dst) {
  const int64_t size = size_of(dst.dtype);
  if (dst.cols == 0) return;
  for (int64_t r = 0; r < dst.rows; ++r)
    std::memcpy(static_cast<uint8_t*>(dst.data) + r * dst.ld * size,
                static_cast<const uint8_t*>(host) + r * dst.cols * size, size_t(dst.cols * size));
}

void RefBackend::download(Tensor src, void* host) {
  const int64_t size = size_of(src.dtype);
  if (src.cols == 0) return;
  for (int64_t r = 0; r < src.rows; ++r)
    std::memcpy(static_cast<uint8_t*>(host) + r * src.cols * size,
                static_cast<const uint8_t*>(src.data) + r * src.ld * size, size_t(src.cols * size));
}

std::unique_ptr<Device> open_ref_device() { return std::make_unique<RefDevice>(); }

}  // namespace cachalot
