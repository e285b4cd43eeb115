// Waiting, as Hopper does it: an mbarrier in shared memory counts arrivals (of threads) and bytes (of
// copies).
//
// A barrier is in a phase. The phase ends when `arrivals` threads have arrived and all expected bytes have
// landed; then the next begins, by itself. wait(parity) blocks while the phase of that parity runs: the first
// phase has parity 0, and waiting on parity 1 of a fresh barrier returns at once (the phase "before" is
// done), which is how a producer finds its ring empty at the start.
//   PTX ISA 8.x, "Parallel Synchronization and Communication Instructions: mbarrier"
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace cachalot::cuda::hopper {

using Barrier = uint64_t;  // in shared memory, 8-byte aligned

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void barrier_init(Barrier* b, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals));
}

// After barrier_init, before any other thread, the copy engine or the cluster may use the barrier.
__device__ __forceinline__ void barrier_init_done() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive(Barrier* b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}

// At the barrier at the same place in the shared memory of block `rank` of the cluster, by a thread that only
// read what the barrier guards: it publishes nothing, and so does not wait (about a microsecond) until its
// writes are seen by the whole GPU, which is what a release to a cluster costs.
__device__ __forceinline__ void arrive_at_after_reading(Barrier* b, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
      "}" ::"r"(shared_address(b)),
      "r"(rank)
      : "memory");
}

// This thread's arrival, and that `bytes` will be written by copies before the phase can end.
__device__ __forceinline__ void arrive_expecting(Barrier* b, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ bool passed(Barrier* b, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(done)
      : "r"(shared_address(b)), "r"(parity)
      : "memory");
  return done != 0;
}
__device__ __forceinline__ void wait(Barrier* b, uint32_t parity) {
  while (!passed(b, parity)) {
  }
}
// The same for data that another block of the cluster wrote.
__device__ __forceinline__ void wait_cluster(Barrier* b, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1;\n"
      "@!p bra again;\n"
      "}" ::"r"(shared_address(b)),
      "r"(parity)
      : "memory");
}

// Named barriers: `threads` of a block (a multiple of 32) meet at number `id` (0 is __syncthreads).
__device__ __forceinline__ void meet(uint32_t id, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void pass_by(uint32_t id, uint32_t threads) {  // arrives, does not wait
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Where a ring of `Stages` buffers stands: which one is next, and the parity of its current round.
template <int Stages> struct Ring {
  uint32_t stage = 0, parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == Stages) stage = 0, parity ^= 1;
  }
};

// Registers of the calling warpgroup (a multiple of 8): a producer gives up what the mathematicians need. The
// kernel must be __launch_bounds__(threads, 1).
template <int Count> __device__ __forceinline__ void keep_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}
template <int Count> __device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
}

// Clusters: blocks that share their shared memories.
__device__ __forceinline__ uint32_t rank_in_cluster() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// All blocks are here; nothing is published (see arrive_at_after_reading) but initialised barriers, after
// barrier_init_done.
__device__ __forceinline__ void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_meet() { cluster_arrive_relaxed(), cluster_wait(); }

// The address of `p` in block `rank` of the cluster, and a write of 16 bytes there that counts on a barrier
// there.
__device__ __forceinline__ uint32_t address_in(const void* p, uint32_t rank) {
  uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(shared_address(p)), "r"(rank));
  return remote;
}
__device__ __forceinline__ void push(uint32_t to, uint32_t barrier, float a, float b, float c, float d) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%2, %3, %4, %5}, [%1];" ::"r"(
          to),
      "r"(barrier), "f"(a), "f"(b), "f"(c), "f"(d)
      : "memory");
}

// Programmatic dependent launch: a kernel may start while the one before it in the stream ends. Nothing that
// kernel wrote may be read before previous_kernel_done(); next_kernel_may_start() is a hint, not a promise.
__device__ __forceinline__ void previous_kernel_done() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void next_kernel_may_start() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace cachalot::cuda::hopper
