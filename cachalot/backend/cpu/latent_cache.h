// Rows of a latent cache in e4m3 (ops/latent_attention.h) for the operations of this folder that read them.
#pragma once

#include <cstdint>

#include "tensor/tensor.h"

namespace cachalot::cpu {

// out[0 ... C + P) = the numbers of a row: exact.
void decode_latent_row(const Tensor& cache, int64_t slot, int64_t latent, int64_t rope, float* out);

}  // namespace cachalot::cpu
