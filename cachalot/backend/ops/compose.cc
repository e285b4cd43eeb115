#include "backend/ops/compose.h"

namespace cachalot {

void compose(Backend& b, const NormGemm& g) {
  b.rmsnorm_forward({.x = g.x, .gain = g.gain, .y = g.y, .r = g.r, .eps = g.eps});
  b.gemm({.a = g.y, .b = g.w, .c = g.c, .trans_b = true});
  if (g.w2) b.gemm({.a = g.y, .b = g.w2, .c = g.c2, .trans_b = true});
}

void compose(Backend& b, const LatentQuery& q) {
  b.norm_gemm(q.project);
  b.latent_append(q.append);
  b.head_gemm(q.absorb);
}

void compose(Backend& b, const Route& r) {
  b.norm_gemm(r.project);
  b.gate_forward(r.choose);
}

void compose(Backend& b, const ExpertMlp& e) {
  b.permute_plan({.indices = e.indices, .row_of = e.row_of, .offsets = e.offsets, .experts = e.experts});
  b.permute({.x = e.x, .row_of = e.row_of, .y = e.rows});
  Tensor shared;
  if (e.shared_down) {
    b.gemm({.a = e.x, .b = e.shared_gate_up, .c = e.shared_hidden, .trans_b = true});
    b.swiglu_forward({.x = e.shared_hidden, .y = e.shared_activated});
    b.gemm({.a = e.shared_activated, .b = e.shared_down, .c = e.shared_output, .trans_b = true});
    shared = e.shared_output;
  }
  b.grouped_gemm({.x = e.rows, .w = e.gate_up, .y = e.hidden, .offsets = e.offsets, .experts = e.experts});
  b.swiglu_forward({.x = e.hidden, .y = e.activated});
  b.grouped_gemm(
      {.x = e.activated, .w = e.down, .y = e.outputs, .offsets = e.offsets, .experts = e.experts});
  b.unpermute({.x = e.outputs,
               .row_of = e.row_of,
               .weights = e.weights,
               .residual = e.residual,
               .shared = shared,
               .y = e.y});
}

}  // namespace cachalot
