// Hopper's matrix instruction. A warpgroup (4 warps, 128 threads) multiplies a 64-row tile by N columns:
//   D [64, N] f32 (registers) = or += A [64, K] (shared memory or registers) x B [K, N] (shared memory),
//   K = 16 of bf16 or 32 of e4m3: 32 bytes. It runs on its own; a program says
//     wgmma_begin(); Wgmma<N>::…(…) …; wgmma_commit(); … wgmma_wait<0>();
//   and must not touch the accumulators (nor A's registers) between.
//
// Where thread t of the warpgroup holds D: rows t/32*16 + t%32/4 (+ 8), columns 8 i + t%4*2 (+ 1):
//   d[4 i + 0], d[4 i + 1]: the upper row, d[4 i + 2], d[4 i + 3]: 8 rows below.
// A from registers, bf16: a[0] columns 2(t%4).. of the upper row, a[1] 8 rows below, a[2], a[3] the same 8 columns
//   on: the accumulator of one product, rounded to bf16, is A of the next as it stands. e4m3: a[0] holds 4
//   columns 4(t%4).., a[1] 8 rows below, a[2], a[3] 16 columns on.
//
// E4M3 sums: the tensor core aligns the 32 products of an instruction and the sum to the largest exponent and
// keeps about 14 bits (DeepSeek-V3 report, section 3.3.2): hence the promotion every 128 of K.
//   PTX ISA 8.x, "Asynchronous Warpgroup Level Matrix Instructions"
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backend/cuda/hopper/barrier.cuh"

namespace cachalot::cuda::hopper {

// Before the first product, and whenever registers that it will use were written by other instructions.
__device__ __forceinline__ void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int Pending> __device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}
// Keeps the compiler from moving accesses of an accumulator across this point.
template <int Count> __device__ __forceinline__ void pin(float (&d)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// A tile in shared memory, 128-byte swizzled, on 1,024 bytes.
//   K contiguous ("K-major"): rows of 128 bytes, 8 rows an atom, atoms one after the other (`atom_stride` bytes
//     from 8 rows to the next 8: 1,024 when packed). Advance K by 32 bytes: add 2 to the descriptor.
//   M or N contiguous ("MN-major", bf16 only): an atom is 8 of K, each 128 bytes = 64 of MN. `atom_stride`: bytes
//     from 8 of K to the next 8 (1,024 when packed), `wide_stride`: from 64 of MN to the next 64. Advance K by 16:
//     add 2 * atom_stride / 16.
__device__ __forceinline__ uint64_t swizzled_tile(const void* tile, uint32_t atom_stride = 1024,
                                                  uint32_t wide_stride = 16) {
  return uint64_t(shared_address(tile) >> 4 & 0x3FFF) | uint64_t(wide_stride >> 4 & 0x3FFF) << 16 |
         uint64_t(atom_stride >> 4 & 0x3FFF) << 32 | uint64_t(1) << 62;
}

// Four 8 x 16-byte matrices from shared memory; lane l has the address of row l % 8 of matrix l / 8. With rows
// 0-7, 8-15 of 16 bytes and then of the next 16, a is what e4m3_rs and bf16_rs take, and what stmatrix stored.
__device__ __forceinline__ void load_matrices(uint32_t (&a)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(from)
               : "memory");
}

enum class Major : int { k = 0, mn = 1 };

template <int N> struct Wgmma;  // N: 16, 32, ... 256; accumulators float[N / 2]

// The lists of registers, 8 at a time.
#define CACHALOT_R0 "%0,%1,%2,%3,%4,%5,%6,%7"
#define CACHALOT_R1 CACHALOT_R0 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define CACHALOT_R2 CACHALOT_R1 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define CACHALOT_R3 CACHALOT_R2 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define CACHALOT_R4 CACHALOT_R3 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define CACHALOT_R5 CACHALOT_R4 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define CACHALOT_R6 CACHALOT_R5 ",%48,%49,%50,%51,%52,%53,%54,%55"
#define CACHALOT_R7 CACHALOT_R6 ",%56,%57,%58,%59,%60,%61,%62,%63"
#define CACHALOT_R8 CACHALOT_R7 ",%64,%65,%66,%67,%68,%69,%70,%71"
#define CACHALOT_R9 CACHALOT_R8 ",%72,%73,%74,%75,%76,%77,%78,%79"
#define CACHALOT_R10 CACHALOT_R9 ",%80,%81,%82,%83,%84,%85,%86,%87"
#define CACHALOT_R11 CACHALOT_R10 ",%88,%89,%90,%91,%92,%93,%94,%95"
#define CACHALOT_R12 CACHALOT_R11 ",%96,%97,%98,%99,%100,%101,%102,%103"
#define CACHALOT_R13 CACHALOT_R12 ",%104,%105,%106,%107,%108,%109,%110,%111"
#define CACHALOT_R14 CACHALOT_R13 ",%112,%113,%114,%115,%116,%117,%118,%119"
#define CACHALOT_R15 CACHALOT_R14 ",%120,%121,%122,%123,%124,%125,%126,%127"
#define CACHALOT_O(i)                                                                             \
  "+f"(d[8 * i]), "+f"(d[8 * i + 1]), "+f"(d[8 * i + 2]), "+f"(d[8 * i + 3]), "+f"(d[8 * i + 4]), \
      "+f"(d[8 * i + 5]), "+f"(d[8 * i + 6]), "+f"(d[8 * i + 7])
#define CACHALOT_O0 CACHALOT_O(0)
#define CACHALOT_O1 CACHALOT_O0, CACHALOT_O(1)
#define CACHALOT_O2 CACHALOT_O1, CACHALOT_O(2)
#define CACHALOT_O3 CACHALOT_O2, CACHALOT_O(3)
#define CACHALOT_O4 CACHALOT_O3, CACHALOT_O(4)
#define CACHALOT_O5 CACHALOT_O4, CACHALOT_O(5)
#define CACHALOT_O6 CACHALOT_O5, CACHALOT_O(6)
#define CACHALOT_O7 CACHALOT_O6, CACHALOT_O(7)
#define CACHALOT_O8 CACHALOT_O7, CACHALOT_O(8)
#define CACHALOT_O9 CACHALOT_O8, CACHALOT_O(9)
#define CACHALOT_O10 CACHALOT_O9, CACHALOT_O(10)
#define CACHALOT_O11 CACHALOT_O10, CACHALOT_O(11)
#define CACHALOT_O12 CACHALOT_O11, CACHALOT_O(12)
#define CACHALOT_O13 CACHALOT_O12, CACHALOT_O(13)
#define CACHALOT_O14 CACHALOT_O13, CACHALOT_O(14)
#define CACHALOT_O15 CACHALOT_O14, CACHALOT_O(15)

// `last`: N / 16 - 1, the last group of registers. p0 ... p5: the numbers of the operands after them. `add`: 0
// overwrites D. ss: both from shared memory (descriptors); rs: A from registers.
#define CACHALOT_WGMMA(n, last, p0, p1, p2, p3, p4, p5, p6)                                               \
  template <> struct Wgmma<n> {                                                                           \
    template <Major A = Major::k, Major B = Major::k>                                                     \
    __device__ __forceinline__ static void bf16_ss(float (&d)[n / 2], uint64_t a, uint64_t b, int add) {  \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p2                                                 \
                   ", 0;\n"                                                                               \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" CACHALOT_R##last          \
                   "}, " p0 ", " p1 ", p, 1, 1, " p3 ", " p4 ";\n}"                                       \
                   : CACHALOT_O##last                                                                     \
                   : "l"(a), "l"(b), "r"(add), "n"(int(A)), "n"(int(B)));                                 \
    }                                                                                                     \
    template <Major B = Major::k> __device__ __forceinline__ static void bf16_rs(float (&d)[n / 2],       \
                                                                                 const uint32_t (&a)[4],  \
                                                                                 uint64_t b, int add) {   \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p5                                                 \
                   ", 0;\n"                                                                               \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" CACHALOT_R##last          \
                   "}, {" p0 "," p1 "," p2 "," p3 "}, " p4 ", p, 1, 1, " p6 ";\n}"                        \
                   : CACHALOT_O##last                                                                     \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(int(B)));          \
    }                                                                                                     \
    __device__ __forceinline__ static void e4m3_ss(float (&d)[n / 2], uint64_t a, uint64_t b, int add) {  \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p2                                                 \
                   ", 0;\n"                                                                               \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k32.f32.e4m3.e4m3 {" CACHALOT_R##last          \
                   "}, " p0 ", " p1 ", p, 1, 1;\n}"                                                       \
                   : CACHALOT_O##last                                                                     \
                   : "l"(a), "l"(b), "r"(add));                                                           \
    }                                                                                                     \
    __device__ __forceinline__ static void e4m3_rs(float (&d)[n / 2], const uint32_t (&a)[4], uint64_t b, \
                                                   int add) {                                             \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p5                                                 \
                   ", 0;\n"                                                                               \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k32.f32.e4m3.e4m3 {" CACHALOT_R##last          \
                   "}, {" p0 "," p1 "," p2 "," p3 "}, " p4 ", p, 1, 1;\n}"                                \
                   : CACHALOT_O##last                                                                     \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));                       \
    }                                                                                                     \
  };
CACHALOT_WGMMA(16, 0, "%8", "%9", "%10", "%11", "%12", "%13", "%14")
CACHALOT_WGMMA(32, 1, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
CACHALOT_WGMMA(48, 2, "%24", "%25", "%26", "%27", "%28", "%29", "%30")
CACHALOT_WGMMA(64, 3, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
CACHALOT_WGMMA(80, 4, "%40", "%41", "%42", "%43", "%44", "%45", "%46")
CACHALOT_WGMMA(96, 5, "%48", "%49", "%50", "%51", "%52", "%53", "%54")
CACHALOT_WGMMA(112, 6, "%56", "%57", "%58", "%59", "%60", "%61", "%62")
CACHALOT_WGMMA(128, 7, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
CACHALOT_WGMMA(144, 8, "%72", "%73", "%74", "%75", "%76", "%77", "%78")
CACHALOT_WGMMA(160, 9, "%80", "%81", "%82", "%83", "%84", "%85", "%86")
CACHALOT_WGMMA(176, 10, "%88", "%89", "%90", "%91", "%92", "%93", "%94")
CACHALOT_WGMMA(192, 11, "%96", "%97", "%98", "%99", "%100", "%101", "%102")
CACHALOT_WGMMA(208, 12, "%104", "%105", "%106", "%107", "%108", "%109", "%110")
CACHALOT_WGMMA(224, 13, "%112", "%113", "%114", "%115", "%116", "%117", "%118")
CACHALOT_WGMMA(240, 14, "%120", "%121", "%122", "%123", "%124", "%125", "%126")
CACHALOT_WGMMA(256, 15, "%128", "%129", "%130", "%131", "%132", "%133", "%134")
#undef CACHALOT_WGMMA

}  // namespace cachalot::cuda::hopper
