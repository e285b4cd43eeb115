#include "nn/mla.h"

namespace cachalot {

AttentionShape Mla::shape(const TokenBatch& batch, Tensor key_starts) const {
  return {.heads = heads,
          .nope = nope,
          .rope = rope,
          .value = value,
          .scale = softmax_scale,
          .sequences = batch.sequences,
          .q_starts = batch.starts,
          .k_starts = key_starts};
}

Mla::Saved Mla::forward(Stream& s, Arena& arena, const TokenBatch& batch, Tensor cache, Tensor x,
                        Tensor y) const {
  const int64_t t = x.rows, qk = nope + rope;
  Saved saved;
  saved.x = x;

  // Query.
  Tensor q_in = x;
  if (q_a) {
    Tensor compressed = arena.take(recipe.act, t, q_a->out());
    q_a->forward(s, x, compressed);
    saved.cq = arena.take_like(compressed);
    saved.q_norm = q_a_norm.forward(s, arena, compressed, saved.cq);
    q_in = saved.cq;
  }
  saved.q = arena.take(recipe.act, t, heads * qk);
  q_b.forward(s, q_in, saved.q);
  table->apply(s, saved.q, batch.positions, heads, qk, nope);

  // Latent and rotary key: the numbers that the cache keeps.
  Tensor kva = arena.take(recipe.act, t, latent + rope);
  kv_a.forward(s, x, kva);
  saved.cached = arena.take(recipe.act, t, latent + rope);
  saved.kv_norm = kv_a_norm.forward(s, arena, kva.slice_cols(0, latent), saved.cached.slice_cols(0, latent));
  on(s).cast({.x = kva.slice_cols(latent, rope), .y = saved.cached.slice_cols(latent, rope)});
  table->apply(s, saved.cached, batch.positions, 1, 0, latent);
  if (batch.attend != Attend::self) on(s).scatter_rows({.x = saved.cached, .rows = batch.slots, .y = cache});

  saved.attended = arena.take(recipe.act, t, heads * value);
  switch (batch.attend) {
    case Attend::self: attend_expanded(s, arena, batch, saved.cached, batch.starts, saved); break;
    case Attend::expand: {
      Tensor keys = arena.take(recipe.act, batch.key_rows, latent + rope);
      on(s).gather_rows({.x = cache, .rows = batch.key_slots, .y = keys});
      attend_expanded(s, arena, batch, keys, batch.key_starts, saved);
      break;
    }
    case Attend::absorb: attend_absorbed(s, arena, batch, cache, saved); break;
  }
  o.forward(s, saved.attended, y);
  return saved;
}

void Mla::attend_expanded(Stream& s, Arena& arena, const TokenBatch& batch, Tensor latents, Tensor key_starts,
                          Saved& saved) const {
  saved.kv = arena.take(recipe.act, latents.rows, heads * (nope + value));
  kv_b.forward(s, latents.slice_cols(0, latent), saved.kv);
  saved.lse = arena.take(recipe.stat, saved.q.rows, heads);
  on(s).attention_forward({.shape = shape(batch, key_starts),
                           .q = saved.q,
                           .kv = saved.kv,
                           .k_rope = latents.slice_cols(latent, rope),
                           .o = saved.attended,
                           .lse = saved.lse});
}

void Mla::attend_absorbed(Stream& s, Arena& arena, const TokenBatch& batch, Tensor cache,
                          const Saved& saved) const {
  const int64_t t = saved.q.rows, qk = nope + rope;
  Arena::Scope scratch(arena);
  Tensor q_latent = arena.take(recipe.act, t, heads * latent), o_latent = arena.take_like(q_latent);
  on(s).head_gemm({.x = saved.q,
                   .w = kv_b.w,
                   .y = q_latent,
                   .heads = heads,
                   .x_stride = qk,
                   .y_stride = latent,
                   .w_first = 0,
                   .w_stride = nope + value,
                   .w_rows = nope});
  on(s).latent_attention({.q_latent = q_latent,
                          .q_rope = saved.q.slice_cols(nope, heads * qk - nope),
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
                          .scale = softmax_scale});
  on(s).head_gemm({.x = o_latent,
                   .w = kv_b.w,
                   .y = saved.attended,
                   .heads = heads,
                   .x_stride = latent,
                   .y_stride = value,
                   .w_first = nope,
                   .w_stride = nope + value,
                   .w_rows = value,
                   .trans_w = true});
}

void Mla::backward_input(Stream& s, Arena& arena, const TokenBatch& batch, Saved& saved, Tensor dy, Tensor dx,
                         Accumulate mode) const {
  CHECK(batch.attend == Attend::self, "only whole sequences have a backward");
  const int64_t t = dy.rows, qk = nope + rope;
  saved.dy = dy;
  saved.dq = arena.take_like(saved.q);
  saved.dkv = arena.take_like(saved.kv);
  saved.dkva = arena.take(recipe.act, t, latent + rope);
  if (q_a) saved.dcq = arena.take_like(saved.cq);
  Arena::Scope scratch(arena);

  Tensor d_attended = arena.take_like(saved.attended);
  o.backward_input(s, dy, d_attended);
  Tensor d_rope =
      saved.dkva.slice_cols(latent, rope);  // the rotary key skips the norm: its gradient is final
  on(s).attention_backward({.shape = shape(batch, batch.starts),
                            .q = saved.q,
                            .kv = saved.kv,
                            .k_rope = saved.cached.slice_cols(latent, rope),
                            .o = saved.attended,
                            .lse = saved.lse,
                            .d_o = d_attended,
                            .dq = saved.dq,
                            .dkv = saved.dkv,
                            .dk_rope = d_rope});
  table->apply_inverse(s, saved.dq, batch.positions, heads, qk, nope);
  table->apply_inverse(s, saved.dkva, batch.positions, 1, 0, latent);

  Tensor d_latent = arena.take(recipe.act, t, latent);
  kv_b.backward_input(s, saved.dkv, d_latent);
  kv_a_norm.backward(s, saved.kv_norm, d_latent, {}, saved.dkva.slice_cols(0, latent), mode);
  kv_a.backward_input(s, saved.dkva, dx);

  if (q_a) {
    Tensor d_normed = arena.take_like(saved.cq);
    q_b.backward_input(s, saved.dq, d_normed);
    q_a_norm.backward(s, saved.q_norm, d_normed, {}, saved.dcq, mode);
    q_a->backward_input(s, saved.dcq, dx, Accumulate::add);
  } else {
    q_b.backward_input(s, saved.dq, dx, Accumulate::add);
  }
}

void Mla::backward_weight(Stream& s, const Saved& saved, Accumulate mode) const {
  o.backward_weight(s, saved.dy, saved.attended, mode);
  kv_b.backward_weight(s, saved.dkv, saved.cached.slice_cols(0, latent), mode);
  kv_a.backward_weight(s, saved.dkva, saved.x, mode);
  if (q_a) {
    q_b.backward_weight(s, saved.dq, saved.cq, mode);
    q_a->backward_weight(s, saved.dcq, saved.x, mode);
  } else {
    q_b.backward_weight(s, saved.dq, saved.x, mode);
  }
}

}  // namespace cachalot
