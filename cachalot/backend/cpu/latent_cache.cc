// Contracts: LatentAppend, LatentGather and LatentPlan of backend/ops/latent_attention.h. Rows are
// independent; the parts of a row are those of rmsnorm.cc, rope.cc and quantize.cc, with their bits.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "backend/cpu/convert.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/latent_cache.h"
#include "backend/cpu/rows_as_stored.h"
#include "backend/ops/check.h"
#include "backend/ops/latent_row.h"

namespace cachalot::cpu {

namespace {

constexpr float kFloor = 1e-4f;

// The power of two at or above x, at most 2^7.
float scale_at_least(float x) {
  const float scale = std::bit_cast<float>((std::bit_cast<uint32_t>(x) + 0x7FFFFFu) & ~0x7FFFFFu);
  return std::min(scale, kMostLatentScale);
}

void encode(const Vectors& vectors, float* latent, const float* key, const LatentRow& to) {
  for (int64_t tile = 0; tile < to.tiles(); ++tile) {
    const int64_t first = tile * kScaleBlock, n = std::min(kScaleBlock, to.latent - first);
    float* x = latent + first;
    const float largest = vectors.largest_size(x, n, kFloor), scale = scale_at_least(largest / e4m3::kMax),
                most = scale * e4m3::kMax;
    if (largest > most)
      for (int64_t i = 0; i < n; ++i) x[i] = x[i] > most ? most : x[i] < -most ? -most : x[i];
    to.set_scale(tile, scale);
    vectors.encode(x, scale, n, to.codes() + first);
  }
  for (int64_t i = 0; i < to.rope; ++i) to.set_key(i, bf16(key[i]));
}

void check_slot(const char* op, int64_t slot, int64_t slots) {
  CHECK(slot < slots,
        std::string(op) + ": cache row " + std::to_string(slot) + " of " + std::to_string(slots));
}

}  // namespace

void decode_latent_row(const Tensor& cache, int64_t slot, int64_t latent, int64_t rope, float* out) {
  const LatentRow row = latent_row(cache, slot, latent, rope);
  for (int64_t tile = 0; tile < row.tiles(); ++tile) {
    const float scale = row.scale(tile);
    const int64_t end = std::min(latent, (tile + 1) * kScaleBlock);
    for (int64_t c = tile * kScaleBlock; c < end; ++c)
      out[c] = float(std::bit_cast<e4m3>(row.codes()[c])) * scale;
  }
  for (int64_t i = 0; i < rope; ++i) out[latent + i] = float(row.key(i));
}

// A row's pieces begin at multiples of 256 tokens, whatever the batch (latent_attention.cc).
void CpuBackend::latent_plan(const LatentPlan& p) { check(p); }

void CpuBackend::latent_append(const LatentAppend& a) {
  check(a);
  require_no_f64("latent_append", {&a.x, &a.q});
  const Vectors& vectors = context_->vectors;
  const RowVectors& stored = rows_in(vectors, a.x.dtype);
  const auto gain = a.gain.vector<const float>();
  const auto positions = a.positions.vector<const int32_t>(), slots = a.slots.vector<const int32_t>();
  const auto cos = a.cos.matrix<const float>(), sin = a.sin.matrix<const float>();
  const int64_t width = a.latent + a.rope, turned = a.q ? a.heads * a.rope : 0;
  const bool codes = a.cache.dtype == DType::e4m3;
  const double nanoseconds = double(a.x.rows) * (0.5 * double(width + turned) + (codes ? double(width) : 0));
  context_->parallel_ranges(
      a.x.rows, rows_per_item(width + turned), nanoseconds, [&](int64_t begin, int64_t end) {
        Scratch scratch;
        float *along = scratch.take<float>(a.rope), *across = scratch.take<float>(a.rope),
              *numbers = scratch.take<float>(width);
        const Tensor row = make_tensor(scratch.take<float>(width), a.x.dtype, 1, width);
        for (int64_t t = begin; t < end; ++t) {
          CHECK(
              a.rope == 0 || (0 <= positions[t] && positions[t] < cos.rows),
              "latent_append: position " + std::to_string(positions[t]) + " of " + std::to_string(cos.rows));
          for (int64_t i = 0; i < a.rope / 2; ++i) {
            const float c = cos(positions[t], i), s = sin(positions[t], i);
            along[2 * i] = along[2 * i + 1] = c;
            across[2 * i] = -s, across[2 * i + 1] = s;
          }
          if (a.q) stored.rotate(place(a.q, t, a.q_offset), a.heads, a.q_stride, along, across, a.rope);
          if (slots[t] < 0) continue;
          check_slot("latent_append", slots[t], a.cache.rows);
          const void* x = place(a.x, t);
          const float r =
              float(1 / std::sqrt(double(stored.sum_squares(x, a.latent)) / double(a.latent) + a.eps));
          stored.normalise(x, gain.data, r, a.latent, row.data);
          std::memcpy(place(row, 0, a.latent), place(a.x, t, a.latent), size_t(a.rope * size_of(a.x.dtype)));
          stored.rotate(place(row, 0, a.latent), 1, 0, along, across, a.rope);
          if (!codes) {
            copy_row(row, 0, a.cache, slots[t]);
          } else {
            stored.to_floats(row.data, 1, width, numbers);
            encode(vectors, numbers, numbers + a.latent, latent_row(a.cache, slots[t], a.latent, a.rope));
          }
        }
      });
}

void CpuBackend::latent_gather(const LatentGather& g) {
  check(g);
  require_no_f64("latent_gather", {&g.y});
  const int64_t width = g.latent + g.rope;
  const auto rows = g.rows.vector<const int32_t>();
  context_->parallel_ranges(g.y.rows, rows_per_item(width), double(g.y.size()),
                            [&](int64_t begin, int64_t end) {
                              Scratch scratch;
                              float* numbers = scratch.take<float>(width);
                              for (int64_t t = begin; t < end; ++t) {
                                if (rows[t] < 0) {
                                  std::fill(numbers, numbers + width, 0.0f);
                                } else {
                                  check_slot("latent_gather", rows[t], g.cache.rows);
                                  decode_latent_row(g.cache, rows[t], g.latent, g.rope, numbers);
                                }
                                store_row(g.y, t, 0, width, numbers);
                              }
                            });
}

}  // namespace cachalot::cpu
