// Hopper's copy engine (TMA): one thread asks for a box of a matrix, the engine computes addresses, cuts at the
// matrix' edges (what lies outside reads as zero and is not written), arranges the rows for the tensor cores
// (swizzle) and counts the bytes on an mbarrier.
//
// Coordinates are in elements, fastest dimension first: {column, row}. The shared side of a 128-byte swizzled
// box starts on 1,024 bytes; its row is 128 bytes; 16-byte chunk c of row r lies at chunk c ^ (r % 8).
//   PTX ISA 8.x, "Data Movement and Conversion Instructions: Tensor copy"; CUDA driver API, cuTensorMapEncodeTiled
#pragma once

#include <cuda.h>

#include "backend/cuda/hopper/barrier.cuh"

namespace cachalot::cuda::hopper {

using TensorMap = CUtensorMap;  // pass as `const __grid_constant__ TensorMap`

// How often a copied line will be asked for again (the three policies that createpolicy makes for fractions of
// one; fixed encodings, as CUTLASS's TMA::CacheHintSm90 lists them).
enum class Reuse : uint64_t {
  normal = 0x1000000000000000,
  first_out = 0x12F0000000000000,  // streamed once
  last_out = 0x14F0000000000000,   // read by many blocks
};

__device__ __forceinline__ void prefetch(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

__device__ __forceinline__ void load(const TensorMap* map, Barrier* done, void* to, int32_t c0, int32_t c1,
                                     Reuse reuse = Reuse::normal) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(done)), "r"(c0), "r"(c1), "l"(uint64_t(reuse))
      : "memory");
}
__device__ __forceinline__ void load(const TensorMap* map, Barrier* done, void* to, int32_t c0, int32_t c1,
                                     int32_t c2, Reuse reuse = Reuse::normal) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(done)), "r"(c0), "r"(c1), "r"(c2), "l"(uint64_t(reuse))
      : "memory");
}
__device__ __forceinline__ void load(const TensorMap* map, Barrier* done, void* to, int32_t c0, int32_t c1,
                                     int32_t c2, int32_t c3, Reuse reuse = Reuse::normal) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(done)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "l"(uint64_t(reuse))
      : "memory");
}
// To the same place, and the same barrier, of every block of the cluster whose bit is set.
__device__ __forceinline__ void load_to_all(const TensorMap* map, Barrier* done, void* to, uint16_t blocks,
                                            int32_t c0, int32_t c1, Reuse reuse = Reuse::normal) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
      ".L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5, %6;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(done)), "r"(c0), "r"(c1), "h"(blocks), "l"(uint64_t(reuse))
      : "memory");
}
__device__ __forceinline__ void load_to_all(const TensorMap* map, Barrier* done, void* to, uint16_t blocks,
                                            int32_t c0, int32_t c1, int32_t c2, Reuse reuse = Reuse::normal) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
      ".L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6, %7;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(done)), "r"(c0), "r"(c1), "r"(c2), "h"(blocks), "l"(uint64_t(reuse))
      : "memory");
}

// Contiguous bytes (a multiple of 16, both sides on 16 bytes).
__device__ __forceinline__ void load_bytes(const void* from, Barrier* done, void* to, uint32_t bytes) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(done))
      : "memory");
}

// Shared memory to a box of the matrix. Before it: writes by threads, shared_writes_visible() by each writer, a
// barrier. Then one thread: store, commit_stores, and wait_stores_read before the shared memory is written again.
__device__ __forceinline__ void store(const TensorMap* map, const void* from, int32_t c0, int32_t c1) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
               "r"(shared_address(from)), "r"(c0), "r"(c1)
               : "memory");
}
__device__ __forceinline__ void store(const TensorMap* map, const void* from, int32_t c0, int32_t c1,
                                      int32_t c2) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
               "r"(shared_address(from)), "r"(c0), "r"(c1), "r"(c2)
               : "memory");
}
__device__ __forceinline__ void store(const TensorMap* map, const void* from, int32_t c0, int32_t c1,
                                      int32_t c2, Reuse reuse) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group.L2::cache_hint [%0, {%2, %3, %4}], [%1], %5;" ::"l"(
          map),
      "r"(shared_address(from)), "r"(c0), "r"(c1), "r"(c2), "l"(uint64_t(reuse))
      : "memory");
}
// The same, added to what is there (f32 or bf16, as the map says); in no fixed order among blocks.
__device__ __forceinline__ void store_adding(const TensorMap* map, const void* from, int32_t c0, int32_t c1) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
      "r"(shared_address(from)), "r"(c0), "r"(c1)
      : "memory");
}
__device__ __forceinline__ void store_adding(const TensorMap* map, const void* from, int32_t c0, int32_t c1,
                                             int32_t c2) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
      "r"(shared_address(from)), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}
__device__ __forceinline__ void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int Pending> __device__ __forceinline__ void wait_stores_read() {  // shared side may be reused
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Pending) : "memory");
}
template <int Pending> __device__ __forceinline__ void wait_stores() {  // global side is written
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(Pending) : "memory");
}

// Ordinary writes to shared memory become visible to the copy engine and the tensor cores.
__device__ __forceinline__ void shared_writes_visible() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace cachalot::cuda::hopper
