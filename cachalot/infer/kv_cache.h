// The latent cache of MLA in pages (V3 report section 2.1.1: kv_lora_rank + qk_rope_head_dim numbers a token
// and layer are all that decoding keeps). Every layer has its own pages, MTP layers included; page p of a
// sequence has the same number in all of them, so one table a sequence is enough.
//
// Pages are given back in any order and taken again: what a page held before is garbage to its next owner,
// and a token that speculation wrote in vain is garbage until it is overwritten. Lengths, kept by the host,
// say what counts.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/buffer.h"

namespace cachalot {

// How a token lies in the cache (ops/latent_attention.h).
enum class CacheFormat : uint8_t {
  act,  // as the recipe computes: bf16, or f32
  fp8,  // E4M3 codes with scales beside a bf16 key: 656 bytes instead of 1152 at V3's widths
};
// "bf16" (the recipe's own format) or "fp8". Error: anything else.
CacheFormat parse_cache_format(std::string_view text);

struct KvShape {
  int64_t layers = 0;
  int64_t pages = 0;       // a layer
  int64_t page_size = 64;  // tokens a page
  int64_t width = 0;       // C + P numbers a token and layer; e4m3: bytes
  DType dtype = DType::f32;

  int64_t slots() const { return pages * page_size; }
  int64_t bytes() const;  // of all layers; Error when it is beyond any machine
};

class KvCache {
 public:
  // Error naming --max-context when the device lacks the memory.
  KvCache(Device& device, const KvShape& shape);
  KvCache(const KvCache&) = delete;  // page tables point at it

  const KvShape& shape() const { return shape_; }
  std::span<const Tensor> layers() const { return layers_; }  // [pages * page_size, width] each
  int64_t free_pages() const { return int64_t(free_.size()); }
  std::string plan() const;  // "3 layers of 2 pages of 64 tokens, 80 numbers f32 a token"

 private:
  friend class PageTable;
  KvShape shape_;
  Buffer buffer_;
  std::vector<Tensor> layers_;
  std::vector<int32_t> free_;  // a stack: the page given back last is taken first, it is warm in the caches
};

// The pages of one sequence, given back when it ends. The cache must outlive it.
class PageTable {
 public:
  explicit PageTable(KvCache& cache) : cache_(&cache) {}
  PageTable(PageTable&& other) noexcept : cache_(other.cache_), pages_(std::move(other.pages_)) {
    other.pages_.clear();
  }
  PageTable& operator=(PageTable&&) = delete;
  ~PageTable();

  // Grows until `tokens` tokens fit; false, with nothing changed, when too few pages are free.
  bool reserve(int64_t tokens);
  int64_t slot(int64_t position) const;  // the cache row of a token
  std::span<const int32_t> pages() const { return pages_; }
  int64_t page_size() const { return cache_->shape_.page_size; }

 private:
  KvCache* cache_;
  std::vector<int32_t> pages_;
};

}  // namespace cachalot
