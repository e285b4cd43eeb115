#include "infer/kv_cache.h"

#include <fmt/format.h>

#include <limits>

#include "base/text.h"

namespace cachalot {

namespace {

Buffer take_pages(Device& device, const KvShape& shape) {
  const int64_t bytes = shape.bytes();
  const auto refuse = [&] {
    throw Error(fmt::format("the KV pages for {} tokens need {} on {}; free: {}", shape.slots(),
                            human_bytes(double(bytes)), device.name(),
                            human_bytes(double(device.free_bytes()))))
        .hint("lower --max-context, or use --precision bf16 or --cache fp8");
  };
  if (bytes > device.free_bytes()) refuse();
  try {
    return Buffer(device, bytes, "KV pages");
  } catch (const Error&) {  // somebody else took the memory in between
    refuse();
  }
  return {};
}

}  // namespace

CacheFormat parse_cache_format(std::string_view text) {
  if (text == "bf16") return CacheFormat::act;
  if (text == "fp8") return CacheFormat::fp8;
  throw Error(fmt::format("a latent cache in {}", text)).hint("--cache bf16 or --cache fp8");
}

int64_t KvShape::bytes() const {
  CHECK(layers >= 0 && pages >= 0 && page_size > 0 && width > 0);
  // Slots are i32 on the device; the product below then stays in int64 for any width that config/model.cc
  // admits.
  if (pages > std::numeric_limits<int32_t>::max() / page_size)
    throw Error(fmt::format("a cache of {} pages of {} tokens has more rows than 32 bits can number", pages,
                            page_size))
        .hint("lower --max-context");
  const double total = double(layers) * double(slots()) * double(width) * double(size_of(dtype));
  if (total > 0x1p50)
    throw Error(fmt::format("the KV pages for {} tokens need {}", slots(), human_bytes(total)))
        .hint("lower --max-context");
  return layers * slots() * width * size_of(dtype);
}

KvCache::KvCache(Device& device, const KvShape& shape) : shape_(shape), buffer_(take_pages(device, shape)) {
  const int64_t layer_bytes = shape.slots() * shape.width * size_of(shape.dtype);
  for (int64_t l = 0; l < shape.layers; ++l)
    layers_.push_back(make_tensor(static_cast<uint8_t*>(buffer_.data()) + l * layer_bytes, shape.dtype,
                                  shape.slots(), shape.width));
  for (int64_t p = shape.pages; p-- > 0;) free_.push_back(int32_t(p));
}

std::string KvCache::plan() const {
  const bool codes = shape_.dtype == DType::e4m3;
  return fmt::format("{} layers of {} pages of {} tokens, {} {} a token", shape_.layers, shape_.pages,
                     shape_.page_size, shape_.width,
                     codes ? "bytes FP8" : fmt::format("numbers {}", name_of(shape_.dtype)));
}

PageTable::~PageTable() {
  for (size_t i = pages_.size(); i-- > 0;) cache_->free_.push_back(pages_[i]);
}

bool PageTable::reserve(int64_t tokens) {
  CHECK(tokens >= 0);
  const int64_t wanted = (tokens + page_size() - 1) / page_size();
  if (wanted - int64_t(pages_.size()) > cache_->free_pages()) return false;
  while (int64_t(pages_.size()) < wanted) {
    pages_.push_back(cache_->free_.back());
    cache_->free_.pop_back();
  }
  return true;
}

int64_t PageTable::slot(int64_t position) const {
  const int64_t page = position / page_size();
  CHECK(position >= 0 && page < int64_t(pages_.size()), fmt::format("position {} has no page", position));
  return pages_[size_t(page)] * page_size() + position % page_size();
}

}  // namespace cachalot
