// The router behind its norm: a norm_gemm (ops/norm_gemm.h, one product) whose c is the logits of a gate_forward
// (ops/gate.h, no replay); of few rows a backend makes both in one pass.
// Of the outputs project.y, choose.indices and choose.weights are written; project.r, project.c and choose.scores are
// working memory, contents afterwards unspecified. choose.counts is absent. The bias is read ahead like the weight.
#pragma once

#include "backend/ops/gate.h"
#include "backend/ops/norm_gemm.h"

namespace cachalot {

struct Route {
  NormGemm project;
  GateForward choose;
};

}  // namespace cachalot
