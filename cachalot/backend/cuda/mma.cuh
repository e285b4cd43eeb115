// Matrix instructions of Ampere and later (PTX ISA, "mma.m16n8k16", "ldmatrix", "cp.async"). Fragments of one
// warp, g = lane / 4, q = lane % 4:
//   A 16 x 16, row-major: a[0] = (g, 2q..), a[1] = (g + 8, 2q..), a[2] and a[3] the same at 2q + 8
//   B 16 x 8:             b[0] = rows 2q, 2q + 1 of column g; b[1] = rows 2q + 8, 2q + 9
//   C 16 x 8, float:      c[0], c[1] = (g, 2q), (g, 2q + 1); c[2], c[3] = row g + 8
// ldmatrix loads 8 x 8 blocks: lanes 0-7 give the addresses of the rows of block 0, 8-15 of block 1, and so
// on; lane l receives row l / 4, columns 2 (l % 4) and the next: an A or a B fragment as it lies in memory
// along K. With .trans it receives the transposed block: B from memory that lies along N, A from memory along
// M.
#pragma once

#include <cstdint>

namespace cachalot::cuda {

__device__ inline uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

__device__ inline void load_blocks(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ inline void load_blocks_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// c += a b
__device__ inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two numbers as bf16, rounded to nearest even; `low` lies first in memory.
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// 16 bytes from global to shared memory, on their own; zeros when not `take` (nothing is read then).
__device__ inline void copy_16(uint32_t to, const void* from, bool take) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(take ? 16 : 0)
               : "memory");
}
__device__ inline void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all but the last `left` groups have arrived.
template <int left> __device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}

}  // namespace cachalot::cuda
