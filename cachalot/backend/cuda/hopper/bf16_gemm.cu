#include "backend/cuda/hopper/bf16_gemm.h"

#include "backend/cuda/hopper/bf16_launch.cuh"

namespace cachalot::cuda::hopper {

namespace {

struct Forward {
  static constexpr Bf16Kernel k{.ragged = Ragged::rows};
};
struct ForwardF32 {
  static constexpr Bf16Kernel k{.ragged = Ragged::rows, .out = Out::f32};
};
struct InputGrad {
  static constexpr Bf16Kernel k{.b_major = Major::mn, .ragged = Ragged::rows};
};
struct InputGradF32 {
  static constexpr Bf16Kernel k{.b_major = Major::mn, .ragged = Ragged::rows, .out = Out::f32};
};
struct WeightGrad {
  static constexpr Bf16Kernel k{
      .a_major = Major::mn, .b_major = Major::mn, .ragged = Ragged::depth, .out = Out::f32};
};

const char* refused(const Tensor& t) {
  if (reinterpret_cast<uintptr_t>(t.data) % 16 != 0 || t.ld * size_of(t.dtype) % 16 != 0 ||
      t.cols * size_of(t.dtype) % 16 != 0)
    return "rows do not begin on 16 bytes";
  return nullptr;
}
bool is(const Tensor& t, DType dtype) { return t.dtype == dtype; }

}  // namespace

const char* bf16_grouped_gemm(const Bf16GroupedGemm& g, const Card& card, cudaStream_t stream) {
  if (card.major != 9) return "not a Hopper card";
  if (!is(g.x, DType::bf16) || !is(g.w, DType::bf16) || !(is(g.y, DType::bf16) || is(g.y, DType::f32)))
    return "not bf16";
  for (const Tensor* t : {&g.x, &g.w, &g.y})
    if (const char* why = refused(*t)) return why;
  if (g.experts < 1 || g.experts > kMaxExperts || g.x.rows == 0 || g.x.cols == 0 || g.y.cols == 0)
    return "nothing to multiply";
  const Bf16Problem p{.m = g.x.rows,
                      .n = g.y.cols,
                      .k = g.x.cols,
                      .a = g.x.data,
                      .b = g.w.data,
                      .a_ld = g.x.ld,
                      .b_ld = g.w.ld,
                      .d = g.y.data,
                      .d_ld = g.y.ld,
                      .parts = g.experts,
                      .offsets = g.offsets,
                      .faults = g.faults};
  const bool f32 = is(g.y, DType::f32);
  const auto queue = g.input_grad ? (f32 ? &launch<InputGradF32> : &launch<InputGrad>)
                                  : (f32 ? &launch<ForwardF32> : &launch<Forward>);
  queue(p, card.multiprocessors, stream);
  return nullptr;
}

const char* bf16_weight_grad(const Bf16WeightGrad& g, const Card& card, cudaStream_t stream) {
  if (card.major != 9) return "not a Hopper card";
  if (!is(g.dy, DType::bf16) || !is(g.x, DType::bf16) || !is(g.dw, DType::f32)) return "not bf16 into f32";
  for (const Tensor* t : {&g.dy, &g.x, &g.dw})
    if (const char* why = refused(*t)) return why;
  if (g.experts < 1 || g.experts > kMaxExperts || g.x.rows == 0 || g.x.cols == 0 || g.dy.cols == 0)
    return "nothing to multiply";
  launch<WeightGrad>({.m = g.dy.cols,
                      .n = g.x.cols,
                      .k = g.x.rows,
                      .a = g.dy.data,
                      .b = g.x.data,
                      .a_ld = g.dy.ld,
                      .b_ld = g.x.ld,
                      .d = g.dw.data,
                      .d_ld = g.dw.ld,
                      .add = g.add,
                      .parts = g.experts,
                      .offsets = g.offsets,
                      .faults = g.faults,
                      .fault_of = FaultOf::grouped_weight_grad},
                     card.multiprocessors, stream);
  return nullptr;
}

}  // namespace cachalot::cuda::hopper
