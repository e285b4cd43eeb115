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

Mla::Saved Mla::forward(Stream& s, Arena& arena, const TokenBatch& batch, Tensor cache, Tensor x, Tensor y,
                        Keep keep) const {
  const int64_t t = x.rows;
  Saved saved;
  saved.x = operand(s, arena, x, recipe);
  if (q_a) {
    saved.q_norm = {arena.take(recipe.act, t, q_a->out()), arena.take_vector(q_a_norm.gain.dtype, t)};
    q_a->forward(s, saved.x, saved.q_norm.x);
  }
  saved.kva = arena.take(recipe.act, t, latent + rope);
  saved.kv_norm = {saved.kva.slice_cols(0, latent), arena.take_vector(kv_a_norm.gain.dtype, t)};
  kv_a.forward(s, saved.x, saved.kva);
  if (batch.attend != Attend::absorb) saved.lse = arena.take(recipe.stat, t, heads);
  const bool pack = recipe.fp8 && keep != Keep::nothing;
  if (pack) {
    const int64_t n = heads * value;
    saved.packed = arena.take(DType::i32, t, (n + 7) / 8 * 3);
    saved.packed_scales = arena.take(DType::f32, (n + kScaleBlock - 1) / kScaleBlock, t);
  }
  if (!recipe.fp8) saved.attended = arena.take(recipe.act, t, heads * value);

  std::optional<Arena::Scope> expanded;  // of what recompute() makes again
  if (keep == Keep::for_recompute) expanded.emplace(arena);
  expand(s, arena, batch, saved);
  if (batch.attend != Attend::self) append(s, batch, saved.kva, saved.q, cache);
  Tensor keys = saved.cached, key_starts = batch.starts;
  if (batch.attend == Attend::expand) {
    keys = arena.take(recipe.act, batch.key_rows, latent + rope);
    key_starts = batch.key_starts;
    gather(s, cache, batch.key_slots, keys);
  }
  if (batch.attend != Attend::absorb) saved.kv = arena.take(recipe.act, keys.rows, heads * (nope + value));
  std::optional<Arena::Scope> scratch;
  if (recipe.fp8) {
    scratch.emplace(arena);
    saved.attended = arena.take(recipe.act, t, heads * value);
  }
  if (batch.attend == Attend::absorb) {
    attend_absorbed(s, arena, batch, cache, saved.q, saved.attended);
  } else {
    // The cache's numbers quantised: the same codes whether they come from the norm or from the cache.
    kv_b.forward(s, saved.latent ? saved.latent : operand(s, arena, keys.slice_cols(0, latent), recipe), saved.kv);
    attend_expanded(s, batch, keys, key_starts, saved);
  }
  if (!recipe.fp8) {
    o.forward(s, saved.attended, y);
  } else {
    Tensor codes = take_row_tiles(arena, t, heads * value);
    on(s).quantize({.x = saved.attended, .y = codes, .power_of_two = true});
    o.forward(s, codes, y);
    if (pack) on(s).pack_e5m6({.x = saved.attended, .packed = saved.packed, .scales = saved.packed_scales});
    saved.attended = {};
  }
  if (keep == Keep::for_recompute) saved.cq = saved.q = saved.cached = saved.latent = saved.kv = {};
  return saved;
}

void Mla::expand(Stream& s, Arena& arena, const TokenBatch& batch, Saved& saved) const {
  const int64_t t = saved.kva.rows, qk = nope + rope;
  const bool two = recipe.power_of_two;

  // Query.
  Tensor q_in = saved.x;
  if (q_a) {
    saved.cq = recipe.fp8 ? take_row_tiles(arena, t, q_a->out()) : arena.take_like(saved.q_norm.x);
    if (recipe.fp8) q_a_norm.compute(s, saved.q_norm, {}, saved.cq, two);
    else q_a_norm.compute(s, saved.q_norm, saved.cq);
    q_in = saved.cq;
  }
  saved.q = arena.take(recipe.act, t, heads * qk);
  q_b.forward(s, q_in, saved.q);
  if (batch.attend != Attend::self) return;  // append() does the rest
  table->apply(s, saved.q, batch.positions, heads, qk, nope);

  // Latent and rotary key: the numbers that the cache keeps.
  saved.cached = arena.take(recipe.act, t, latent + rope);
  if (recipe.fp8) saved.latent = take_row_tiles(arena, t, latent);
  kv_a_norm.compute(s, saved.kv_norm, saved.cached.slice_cols(0, latent), saved.latent, two);
  on(s).cast({.x = saved.kva.slice_cols(latent, rope), .y = saved.cached.slice_cols(latent, rope)});
  table->apply(s, saved.cached, batch.positions, 1, 0, latent);
}

void Mla::recompute(Stream& s, Arena& arena, const TokenBatch& batch, Saved& saved) const {
  CHECK(batch.attend == Attend::self, "only whole sequences have a backward");
  expand(s, arena, batch, saved);
  saved.kv = arena.take(recipe.act, saved.kva.rows, heads * (nope + value));
  kv_b.forward(s, saved.latent ? saved.latent : saved.cached.slice_cols(0, latent), saved.kv);
}

void Mla::attend_expanded(Stream& s, const TokenBatch& batch, Tensor latents, Tensor key_starts,
                          const Saved& saved) const {
  on(s).attention_forward({.shape = shape(batch, key_starts),
                           .q = saved.q,
                           .kv = saved.kv,
                           .k_rope = latents.slice_cols(latent, rope),
                           .o = saved.attended,
                           .lse = saved.lse});
}

void Mla::backward_input(Stream& s, Arena& arena, const TokenBatch& batch, Saved& saved, Tensor dy, Tensor dx,
                         Accumulate mode) const {
  CHECK(batch.attend == Attend::self, "only whole sequences have a backward");
  const int64_t t = dy.rows, qk = nope + rope;
  const bool fp8 = recipe.fp8;
  // What backward_weight needs of a gradient: itself, or the codes of its transpose.
  const auto take_saved = [&](int64_t cols) {
    return fp8 ? take_columns(arena, t, cols) : arena.take(recipe.act, t, cols);
  };
  saved.dy = fp8 ? take_columns(arena, t, dy.cols) : dy;
  saved.dq = take_saved(heads * qk);
  saved.dkv = take_saved(heads * (nope + value));
  saved.dkva = take_saved(latent + rope);
  if (q_a) saved.dcq = take_saved(q_a->out());
  if (fp8) saved.attended = take_columns(arena, t, heads * value);
  Arena::Scope scratch(arena);

  // The gradient itself while it is made, and what the input gradient's product takes of it.
  const auto take_gradient = [&](Tensor kept, int64_t cols) {
    return fp8 ? arena.take(recipe.act, t, cols) : kept;
  };
  const auto finish = [&](Tensor gradient, Tensor kept, Tensor codes) {
    on(s).quantize({.x = gradient, .y = codes, .transposed = kept, .power_of_two = recipe.power_of_two});
  };
  const auto finished = [&](Tensor gradient, Tensor kept) {
    if (!fp8) return gradient;
    Tensor codes = take_row_tiles(arena, t, gradient.cols);
    finish(gradient, kept, codes);
    return codes;
  };

  Tensor attended = saved.attended;
  if (fp8) {
    attended = arena.take(recipe.act, t, heads * value);
    on(s).unpack_e5m6({.packed = saved.packed, .scales = saved.packed_scales, .y = attended});
    on(s).quantize({.x = attended, .transposed = saved.attended, .power_of_two = true});
  }
  Tensor d_attended = arena.take(recipe.act, t, heads * value);
  o.backward_input(s, finished(dy, saved.dy), d_attended);
  Tensor dq = take_gradient(saved.dq, heads * qk), dkv = take_gradient(saved.dkv, heads * (nope + value)),
         dkva = take_gradient(saved.dkva, latent + rope);
  Tensor d_rope = dkva.slice_cols(latent, rope);  // the rotary key skips the norm: its gradient is final
  on(s).attention_backward({.shape = shape(batch, batch.starts),
                            .q = saved.q,
                            .kv = saved.kv,
                            .k_rope = saved.cached.slice_cols(latent, rope),
                            .o = attended,
                            .lse = saved.lse,
                            .d_o = d_attended,
                            .dq = dq,
                            .dkv = dkv,
                            .dk_rope = d_rope});
  table->apply_inverse(s, dq, batch.positions, heads, qk, nope);
  table->apply_inverse(s, dkva, batch.positions, 1, 0, latent);

  Tensor d_latent = arena.take(recipe.act, t, latent);
  kv_b.backward_input(s, finished(dkv, saved.dkv), d_latent);
  kv_a_norm.backward(s, saved.kv_norm, d_latent, {}, dkva.slice_cols(0, latent), mode);
  Tensor d_down;  // codes of dcq and dkva side by side
  if (fp8 && down_transposed) {
    d_down = take_row_tiles(arena, t, down_transposed.cols);
    finish(dkva, saved.dkva, d_down.slice_cols(q_a->out(), dkva.cols));
  } else {
    kv_a.backward_input(s, finished(dkva, saved.dkva), dx);
  }

  const Tensor dq_operand = finished(dq, saved.dq);
  if (q_a) {
    Tensor d_normed = arena.take(recipe.act, t, q_a->out()), dcq = take_gradient(saved.dcq, q_a->out());
    q_b.backward_input(s, dq_operand, d_normed);
    q_a_norm.backward(s, saved.q_norm, d_normed, {}, dcq, mode);
    if (d_down) {
      finish(dcq, saved.dcq, d_down.slice_cols(0, dcq.cols));
      on(s).gemm({.a = d_down, .b = down_transposed, .c = dx, .trans_b = true});
    } else {
      q_a->backward_input(s, finished(dcq, saved.dcq), dx, Accumulate::add);
    }
  } else {
    q_b.backward_input(s, dq_operand, dx, Accumulate::add);
  }
}

void Mla::backward_weight(Stream& s, Arena& arena, const Saved& saved, Accumulate mode) const {
  const auto kept = [&](Tensor rows, Tensor codes) {
    return recipe.fp8 ? columns(s, arena, codes, recipe.power_of_two) : rows;
  };
  o.backward_weight(s, saved.dy, saved.attended, mode);
  Arena::Scope scratch(arena);
  kv_b.backward_weight(s, saved.dkv, kept(saved.cached.slice_cols(0, latent), saved.latent), mode);
  const Tensor x = kept(saved.x, saved.x);
  kv_a.backward_weight(s, saved.dkva, x, mode);
  if (q_a) {
    q_b.backward_weight(s, saved.dq, kept(saved.cq, saved.cq), mode);
    q_a->backward_weight(s, saved.dcq, x, mode);
  } else {
    q_b.backward_weight(s, saved.dq, x, mode);
  }
}

}  // namespace cachalot
