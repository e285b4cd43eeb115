// The router's kernels for many tokens and up to 64 experts: gate_narrow.cu. Shapes that they do not take: false,
// and nothing was launched.
#pragma once

#include "backend/cuda/gate.cuh"
#include "backend/cuda/launch.cuh"

namespace cachalot::cuda {

// As gate_forward_kernel; counts, where asked for, are complete.
bool gate_forward_narrow(const Queue& queue, const GateArgs& args);
bool gate_backward_narrow(const Queue& queue, const GateBackwardArgs& args);
// As balance_tokens.
bool balance_tokens_narrow(const Queue& queue, const float* scores, int64_t tokens, int experts, int top_k,
                           uint32_t* chosen, double* inverse);

}  // namespace cachalot::cuda
