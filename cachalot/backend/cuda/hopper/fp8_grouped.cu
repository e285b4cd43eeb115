#include "backend/cuda/hopper/fp8_dispatch.cuh"

namespace cachalot::cuda::hopper {

const char* fp8_grouped_gemm(const Fp8GroupedGemm& g, const Card& card, cudaStream_t stream) {
  if (const char* why = refused(card)) return why;
  if (const char* why = refused_operand(g.a, ScaleTile::row)) return why;
  if (const char* why = refused_operand(g.b, ScaleTile::block)) return why;
  if (const char* why = refused_output(g.d)) return why;
  if (const char* why = refused_blocks(g.b, g.d.cols, g.experts)) return why;
  if (g.experts > kMaxExperts) return "too many experts";
  if (g.a.rows == 0 || g.a.cols == 0 || g.d.cols == 0) return "nothing to multiply";
  Fp8Problem p = problem_of(g.a, g.b, g.d);
  p.n = g.d.cols, p.parts = g.experts, p.offsets = g.offsets, p.faults = g.faults;
  // The host knows all experts' rows together: the model takes them as equal.
  const Fp8Shape shape{.m = (p.m + g.experts - 1) / g.experts, .n = p.n, .k = p.k, .experts = g.experts};
  if (g.d.dtype == DType::f32) queue_fp8<kFp8GroupedF32>(p, shape, card, stream);
  else queue_fp8<kFp8Grouped>(p, shape, card, stream);
  return nullptr;
}

const char* fp8_masked_gemm(const Fp8MaskedGemm& g, const Card& card, cudaStream_t stream) {
  if (const char* why = refused(card)) return why;
  if (const char* why = refused_operand(g.a, ScaleTile::row)) return why;
  if (const char* why = refused_operand(g.b, ScaleTile::block)) return why;
  if (const char* why = refused_output(g.d)) return why;
  if (const char* why = refused_blocks(g.b, g.d.cols, g.experts)) return why;
  if (g.d.dtype != DType::bf16) return "the output is not bf16";
  if (g.experts > kMaxExperts) return "too many experts";
  if (g.a.rows == 0 || g.a.cols == 0 || g.d.cols == 0) return "nothing to multiply";
  Fp8Problem p = problem_of(g.a, g.b, g.d);
  p.n = g.d.cols, p.parts = g.experts, p.offsets = g.counts, p.max_rows = g.max_rows;
  const int64_t rows = g.expected_rows ? g.expected_rows : 64;
  queue_fp8<kFp8Masked>(p, {.m = rows, .n = p.n, .k = p.k, .experts = g.experts}, card, stream);
  return nullptr;
}

}  // namespace cachalot::cuda::hopper
