// What the products of this folder share: one description of a batch of products whose sizes may lie on the
// device, and the plain kernel that takes all of them.
#pragma once

#include <cuda_runtime.h>

#include "backend/cuda/faults.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/ops/common.h"

namespace cachalot::cuda {

// C_z = or += op(A_z) op(B_z) for z = 0 ... count-1: M x K times K x N. Problem z begins at the given rows
// and columns of the tensors.
struct Products {
  Tensor a, b, c;
  bool trans_a = false, trans_b = false, add = false;
  int64_t m = 0, n = 0, k = 0, count = 1;
  int64_t a_col_step = 0;
  int64_t b_row_first = 0, b_row_step = 0;
  int64_t c_row_step = 0, c_col_step = 0;
  // Offsets on the device: problem z owns rows [offsets[z], offsets[z+1]) of A and C (`rows`: they are M), or
  // of A and B (`depth`: they are K). The host knows only that they end at `total` or before.
  enum class Ragged : uint8_t { none, rows, depth };
  Ragged ragged = Ragged::none;
  bool read_ahead = false;  // see Gemm
  const int32_t* offsets = nullptr;
  int64_t total = 0;
  Faults faults = {};  // who is told of wrong offsets
  FaultOf op = FaultOf::grouped_gemm;
};

// Any formats, layouts and alignment; float sums in chains of 256, added in order (as on the CPU), so a
// number of C depends on its own row and column only. FFMA units.
void plain_products(cudaStream_t stream, int multiprocessors, const Products& p);

// BF16 inputs whose rows start on 16 bytes, on the tensor cores with f32 sums; C f32 or bf16. Returns false,
// and does nothing, where the alignment does not allow it. Contiguous columns: A along K unless trans_a, B
// along K if trans_b.
bool mma_products(cudaStream_t stream, int multiprocessors, const Products& p);

// Few rows (8; of a ragged batch 64; of a router 256; or `any_rows`, slowly), rows on 16 bytes. B [N, K]: f32 and
// bf16 in any mixture, K a multiple of 8; B [K, N]: bf16. False, and nothing is done, otherwise. A number of C depends
// on its own row and column only, also on how many rows there are it does not.
bool skinny_products(const Queue& queue, const Products& p, bool any_rows = false);

}  // namespace cachalot::cuda
