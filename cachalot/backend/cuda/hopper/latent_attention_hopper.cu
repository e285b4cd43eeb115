#include "backend/cuda/hopper/latent_attention_hopper.h"

#include <limits>

#include "base/error.h"
#include "base/text.h"

namespace cachalot::cuda::hopper {

namespace {

bool packed(const Tensor& t, int64_t ld) {
  return (t.rows <= 1 || t.ld == ld) && reinterpret_cast<uintptr_t>(t.data) % 16 == 0;
}

bool takes(const LatentAttention& a) {
  const bool codes = a.cache.dtype == DType::e4m3;
  return a.q_latent.dtype == DType::bf16 && a.q_rope.dtype == DType::bf16 &&
         a.o_latent.dtype == DType::bf16 && (codes || a.cache.dtype == DType::bf16) &&
         a.latent == kLatentWidth && a.rope == kRopeWidth && packed(a.q_latent, a.heads * kLatentWidth) &&
         packed(a.o_latent, a.heads * kLatentWidth) && a.q_rope_stride % 8 == 0 &&
         packed(a.q_rope, a.heads * a.q_rope_stride) &&
         packed(a.cache, codes ? bytes_of_token(LatentFormat::fp8) : kLatentWidth + kRopeWidth) &&
         a.page_size % kBlockTokens == 0 && a.sequences <= kMostSequences &&
         a.q_latent.rows * a.heads <= std::numeric_limits<int32_t>::max() / kLatentWidth;
}

LatentFormat format_of(DType cache) { return cache == DType::e4m3 ? LatentFormat::fp8 : LatentFormat::bf16; }

// Which kernel (one H200, us in a graph behind another kernel; "large" is latent_decode and its merge):
//   8 heads, 1 sequence       of 513, 2048, 3900 tokens: few 9, 12, 20; narrow 11, 12, 11; large 14, 19
//   8 heads, 8 sequences      of 513, 2048, 3900 tokens: few 10, 12, 22; narrow 11, 14, 16; large 15, 35
//   8 heads, 16 sequences     of 513, 2048 tokens: few 18, 25; narrow 12, 15; large 16, 21
//   16 heads, 32 sequences    of 1024, 4096 tokens: narrow 16, 45; large 22, 53; FP8 cache: narrow 35 of 4096
//   8 heads, 128 sequences    of 513, 4096 tokens: narrow 27, 140; large 32, 154
//   16 heads, 128 sequences   of 513, 4096 tokens: narrow 28, 142; large 32, 154
//   the same, FP8 cache       narrow 21, 90; large 36, 164
//   32 heads, 128 sequences   of 4096 tokens: narrow 296, large 155
// With fixed pieces the choice hangs on nothing that a neighbour could change. Where no table holds more than a piece,
// nothing is ever cut and the narrow kernel walks over whole sequences; contexts of several pieces are the large one's.
enum class Kernel { few, narrow, large };
Kernel kernel_of(const LatentDecode& d) {
  constexpr int64_t kNarrowHeads = 16;
  const LatentStep& s = d.step;
  if (s.unit > 0)
    return s.heads <= kNarrowHeads && s.table_cols * s.page_size <= s.unit ? Kernel::narrow : Kernel::large;
  const bool narrow = narrow_suits(d);
  if (few_suits(d) && (d.step.rows <= 8 || !narrow)) return Kernel::few;
  return narrow ? Kernel::narrow : Kernel::large;
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
                          .unit = a.piece,
                          .multiprocessors = call.multiprocessors,
                          .faults = call.faults},
                 .q_latent = static_cast<const bf16*>(a.q_latent.data),
                 .q_rope = static_cast<const bf16*>(a.q_rope.data),
                 .q_rope_stride = a.q_rope_stride,
                 .format = format_of(a.cache.dtype),
                 .cache = a.cache.data,
                 .o_latent = static_cast<bf16*>(a.o_latent.data),
                 .scale = float(a.scale),
                 .read_ahead = a.plan.data != nullptr};
  const Kernel kernel = kernel_of(d);
  if (kernel == Kernel::few) {
    latent_decode_few(call.queue, d);
    return true;
  }
  const LatentStep planned = d.step;
  if (kernel == Kernel::narrow) d.step.unit = 0;  // of a plan in units too, since they are not cut
  const int64_t plan_bytes = a.plan ? 0 : (4 * plan_words(d.step) + 15) / 16 * 16;
  if (const int64_t bytes = plan_bytes + piece_bytes(d.step); bytes > call.bytes) {
    // The portable kernel would answer, in other bits than for the same sequence alone.
    if (a.piece > 0)
      throw Error("latent_attention: the fixed pieces of " + std::to_string(a.sequences) +
                  " sequences need " + human_bytes(double(bytes)) + " of scratch memory, there are " +
                  human_bytes(double(call.bytes)))
          .hint("fewer sequences at a time, a shorter --max-context, or without --batch-invariant");
    return false;
  }
  d.pieces = static_cast<uint8_t*>(call.memory) + plan_bytes;
  if (a.plan) {
    d.plan = static_cast<const int32_t*>(a.plan.data);
  } else {
    int32_t* const plan = static_cast<int32_t*>(call.memory);
    make_latent_plan(call.queue, planned, plan);
    d.plan = plan;
  }
  if (kernel == Kernel::narrow) latent_decode_narrow(call.queue, d);
  else latent_decode(call.queue, d);
  return true;
}

void latent_plan(const LatentCall& call, const LatentPlan& p) {
  const LatentDecode d{.step = {.sequences = p.sequences,
                                .rows = p.rows,
                                .heads = p.heads,
                                .page_table = static_cast<const int32_t*>(p.page_table.data),
                                .table_ld = p.page_table.ld,
                                .table_cols = p.page_table.cols,
                                .page_size = p.page_size,
                                .kv_lens = static_cast<const int32_t*>(p.kv_lens.data),
                                .q_starts = static_cast<const int32_t*>(p.q_starts.data),
                                .unit = p.piece,
                                .multiprocessors = call.multiprocessors,
                                .faults = call.faults},
                       .format = format_of(p.cache)};
  if (kernel_of(d) == Kernel::few || p.sequences > kMostSequences || p.page_size % kBlockTokens != 0 ||
      p.page_table.cols == 0)
    return;
  CHECK(plan_words(d.step) <= p.plan.cols, "latent_plan: the plan outgrew its memory");
  make_latent_plan(call.queue, d.step, static_cast<int32_t*>(p.plan.data));
}

}  // namespace cachalot::cuda::hopper
