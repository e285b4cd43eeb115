// What inference does in MLA: the cache is written and read. Its forward keeps nothing, so norms, products
// and the append are fused operations (few rows: decoding is made of launches).
#include "nn/mla.h"

namespace cachalot {

LatentAppend Mla::appending(const TokenBatch& batch, Tensor kva, Tensor q, Tensor cache) const {
  return {.x = kva,
          .gain = kv_a_norm.gain,
          .positions = batch.positions,
          .cos = table->cos(),
          .sin = table->sin(),
          .slots = batch.slots,
          .cache = cache,
          .latent = latent,
          .rope = rope,
          .eps = kv_a_norm.eps,
          .q = q,
          .heads = heads,
          .q_stride = nope + rope,
          .q_offset = nope};
}

HeadGemm Mla::absorbing(Tensor q, Tensor q_latent) const {
  return {.x = q,
          .w = kv_b.w,
          .y = q_latent,
          .heads = heads,
          .x_stride = nope + rope,
          .y_stride = latent,
          .w_first = 0,
          .w_stride = nope + value,
          .w_rows = nope,
          .read_ahead = true};
}

void Mla::append(Stream& s, const TokenBatch& batch, Tensor kva, Tensor q, Tensor cache) const {
  on(s).latent_append(appending(batch, kva, q, cache));
}

void Mla::gather(Stream& s, Tensor cache, Tensor rows, Tensor y) const {
  if (cache.dtype == DType::e4m3)
    on(s).latent_gather({.cache = cache, .rows = rows, .y = y, .latent = latent, .rope = rope});
  else on(s).gather_rows({.x = cache, .rows = rows, .y = y});
}

void Mla::attend_absorbed(Stream& s, Arena& arena, const TokenBatch& batch, Tensor cache, Tensor q,
                          Tensor attended) const {
  Arena::Scope scratch(arena);
  Tensor q_latent = arena.take(recipe.act, q.rows, heads * latent);
  on(s).head_gemm(absorbing(q, q_latent));
  attend_latents(s, arena, batch, cache, q, q_latent, attended);
}

void Mla::attend_latents(Stream& s, Arena& arena, const TokenBatch& batch, Tensor cache, Tensor q,
                         Tensor q_latent, Tensor attended) const {
  const int64_t qk = nope + rope;
  Arena::Scope scratch(arena);
  Tensor o_latent = arena.take_like(q_latent);
  on(s).latent_attention({.q_latent = q_latent,
                          .q_rope = q.slice_cols(nope, heads * qk - nope),
                          .cache = cache,
                          .page_table = batch.page_table,
                          .kv_lens = batch.kv_lens,
                          .q_starts = batch.starts,
                          .o_latent = o_latent,
                          .heads = heads,
                          .latent = latent,
                          .rope = rope,
                          .q_rope_stride = qk,
                          .page_size = batch.page_size,
                          .sequences = batch.sequences,
                          .scale = softmax_scale,
                          .plan = batch.latent_plan,
                          .piece = batch.piece});
  on(s).head_gemm({.x = o_latent,
                   .w = kv_b.w,
                   .y = attended,
                   .heads = heads,
                   .x_stride = latent,
                   .y_stride = value,
                   .w_first = nope,
                   .w_stride = nope + value,
                   .w_rows = value,
                   .trans_w = true,
                   .read_ahead = true});
}

void Mla::decode(Stream& s, Arena& arena, const TokenBatch& batch, Tensor cache, const RmsNorm& norm,
                 Tensor x) const {
  CHECK(batch.attend == Attend::absorb && !recipe.fp8);
  const int64_t t = x.rows;
  Arena::Scope scratch(arena);
  Tensor normed = arena.take_like(x), q = arena.take(recipe.act, t, heads * (nope + rope)),
         kva = arena.take(recipe.act, t, latent + rope), q_latent = arena.take(recipe.act, t, heads * latent);
  if (q_a) {
    Tensor compressed = arena.take(recipe.act, t, q_a->out()), cq = arena.take_like(compressed);
    norm.multiply(s, arena, x, normed, q_a->w, compressed, kv_a.w, kva);
    on(s).latent_query({.project = q_a_norm.into(arena, compressed, cq, q_b.w, q),
                        .append = appending(batch, kva, q, cache),
                        .absorb = absorbing(q, q_latent)});
  } else {
    norm.multiply(s, arena, x, normed, q_b.w, q, kv_a.w, kva);
    append(s, batch, kva, q, cache);
    on(s).head_gemm(absorbing(q, q_latent));
  }
  Tensor attended = arena.take(recipe.act, t, heads * value);
  attend_latents(s, arena, batch, cache, q, q_latent, attended);
  on(s).gemm(
      {.a = attended, .b = o.w, .c = x, .trans_b = true, .accumulate = Accumulate::add, .read_ahead = true});
}

}  // namespace cachalot
