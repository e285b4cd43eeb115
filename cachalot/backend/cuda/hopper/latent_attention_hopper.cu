#include "backend/cuda/hopper/latent_attention_hopper.h"

#include <limits>

namespace cachalot::cuda::hopper {

namespace {

bool packed(const Tensor& t, int64_t ld) {
  return (t.rows <= 1 || t.ld == ld) && reinterpret_cast<uintptr_t>(t.data) % 16 == 0;
}

bool takes(const LatentAttention& a) {
  return a.q_latent.dtype == DType::bf16 && a.q_rope.dtype == DType::bf16 &&
         a.o_latent.dtype == DType::bf16 && a.cache.dtype == DType::bf16 && a.latent == kLatentWidth &&
         a.rope == kRopeWidth && packed(a.q_latent, a.heads * kLatentWidth) &&
         packed(a.o_latent, a.heads * kLatentWidth) && a.q_rope_stride % 8 == 0 &&
         packed(a.q_rope, a.heads * a.q_rope_stride) && packed(a.cache, kLatentWidth + kRopeWidth) &&
         a.page_size % kBlockTokens == 0 && a.sequences <= kMostSequences &&
         a.q_latent.rows * a.heads <= std::numeric_limits<int32_t>::max() / kLatentWidth;
}

}  // namespace

bool latent_attention(const LatentCall& call, const LatentAttention& a) {
  if (!takes(a)) return false;
  LatentDecode d{.step = {.sequences = a.sequences,
                          .rows = a.q_latent.rows,
                          .heads = a.heads,
                          .page_table = static_cast<const int32_t*>(a.page_table.data),
                          .table_ld = a.page_table.ld,
                          .table_cols = a.page_table.cols,
                          .page_size = a.page_size,
                          .slots = a.cache.rows,
                          .kv_lens = static_cast<const int32_t*>(a.kv_lens.data),
                          .q_starts = static_cast<const int32_t*>(a.q_starts.data),
                          .multiprocessors = call.multiprocessors,
                          .faults = call.faults},
                 .q_latent = static_cast<const bf16*>(a.q_latent.data),
                 .q_rope = static_cast<const bf16*>(a.q_rope.data),
                 .q_rope_stride = a.q_rope_stride,
                 .cache = a.cache.data,
                 .o_latent = static_cast<bf16*>(a.o_latent.data),
                 .scale = float(a.scale)};
  if (few_suits(d)) {
    latent_decode_few(call.queue, d);
    return true;
  }
  // The plan depends on lengths only and could be shared by all layers of a step; the operation does not know
  // of steps, so it is made again.
  const int64_t plan_bytes = (4 * plan_words(d.step) + 15) / 16 * 16;
  if (plan_bytes + piece_bytes(d.step) > call.bytes) return false;
  int32_t* const plan = static_cast<int32_t*>(call.memory);
  d.plan = plan;
  d.pieces = static_cast<uint8_t*>(call.memory) + plan_bytes;
  make_latent_plan(call.queue, d.step, plan);
  latent_decode(call.queue, d);
  return true;
}

}  // namespace cachalot::cuda::hopper
