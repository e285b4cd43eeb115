// A cluster of eight blocks draws from a row (ops/sample.h), which comes from memory once and then lies in
// their shared memories. Nothing is sorted but the few tokens among which the answer must be:
//
//   1. The largest and the least logit of the row. Logits in between (down to where p is 2^-54 of the
//      largest) have a place, 0 ... 2^18 - 1, the largest first; 256 places are a bin.
//   2. Each block adds up, bin by bin, how much p it has, as integers, which need no order: a token counts
//      2^17 at the beginning of its bin and less behind it. With top_k it counts one, and in which eighth of
//      the bin it is. Then each block adds up an eighth of the bins over all blocks, and tells all.
//   3. From these sums, which are right to kSlack, every block reads between which places the k-th token, the
//      end of top_p and the drawn token must be. Where these are more tokens than are sorted at ease, 2 and 3
//      happen once more, with bins as narrow as what was found allows.
//   4. Now in double, in one fixed order of additions: the sum of all p and of those before the places in
//      question. The tokens at these places go to the first block, which sorts them by comparing each with
//      each and finds the answers; their p are added up as integers, in 2^-52.
//
// Where thousands of tokens share a logit, or one is infinite, the row is drawn bit by bit: the rank of the
// answer is the largest r at which the tokens of rank r and above reach the target.
#include "backend/cuda/hopper/sample_rows.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "backend/cuda/hopper/barrier.cuh"
#include "backend/cuda/hopper/launched.h"
#include "backend/cuda/sample.cuh"

namespace cachalot::cuda::hopper {

namespace {

using namespace drawing;

constexpr int kBlocks = 8, kWarps = kThreads / 32;
constexpr int kStep = 4 * kThreads;                           // logits that the threads read at once
constexpr int64_t kSlice = 16384;                             // logits of a block, at most
constexpr int kChunks = 4;                                    // a slice comes in so many copies
constexpr int kBins = 1024, kOwn = kBins / kBlocks;           // in all; those that a block adds up
constexpr int kBinPlaces = 8, kPlaces = kBins << kBinPlaces;  // a bin at first is 2^8 places wide
constexpr int kWindow = 256;                                  // narrow bins of a query
constexpr int kWhole = 1 << 17;                               // a token at the beginning of its bin
constexpr int kListed = 448;                                  // tokens that the first block sorts
constexpr int kAtEase = 192;
static_assert(kBins == 2 * kThreads && kListed <= kThreads);

enum { kByCount, kByP, kDrawn, kQueries };  // top_k, top_p, the draw: asked in this order

struct alignas(16) Mail {
  double sum;
  int count, unused;
};
__device__ __forceinline__ void post(const Mail& mail, uint32_t to, uint32_t barrier) {
  push(to, barrier, __int_as_float(__double2loint(mail.sum)), __int_as_float(__double2hiint(mail.sum)),
       __int_as_float(mail.count), 0.0f);
}
__device__ __forceinline__ void push_words(const uint32_t* from, uint32_t to, uint32_t barrier) {
  const float4 words = *reinterpret_cast<const float4*>(from);
  push(to, barrier, words.x, words.y, words.z, words.w);
}
__device__ __forceinline__ void push_rank(Rank rank, uint32_t to, uint32_t barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(to),
               "l"(rank), "r"(barrier)
               : "memory");
}
// This thread's arrival at a barrier of another block, and that `bytes` will be pushed there.
__device__ __forceinline__ void arrive_expecting_in(Barrier* b, uint32_t rank, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cluster.b64 _, [%0], %1;" ::"r"(address_in(b, rank)),
               "r"(bytes)
               : "memory");
}
// Adds to a number of another block; what it was.
__device__ __forceinline__ int add_in(int* p, uint32_t rank, int more) {
  int was;
  asm volatile("atom.relaxed.cluster.shared::cluster.add.s32 %0, [%1], %2;"
               : "=r"(was)
               : "r"(address_in(p, rank)), "r"(more)
               : "memory");
  return was;
}
__device__ __forceinline__ void copy_in(void* to, const void* from, uint32_t bytes, Barrier* b) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(b))
      : "memory");
}

using Weight = unsigned long long;  // p, in 2^-52
constexpr double kWeight = 0x1p-52;

struct Listed {
  Rank rank;
  Weight weight;
};
struct Sorted {
  Rank rank;
  Weight before, with;  // of the listed tokens of a higher rank; and with its own
  int place, unused;
};

struct ClusterShared {
  Barrier loaded[kChunks], told[2], parts_here, sums_here, list_here;
  double powers[16], u;
  Mail mail[2][kBlocks];
  Mail above[kBlocks][kQueries + 1];  // of each query the p before its places; and of all tokens
  double sums[kQueries + 1][kWarps];
  float masses[kWarps], counts[kWarps], mass_of_all;
  int first[kQueries], last[kQueries];  // bins
  float mass_before[kQueries], mass_after[kQueries], count_before[kQueries], count_after[kQueries];
  int found, listed, at, start[kQueries], chosen;  // found: by this block; listed: in the first one, by all
  uint16_t local[kListed];                         // which of its logits they are
  alignas(16) uint32_t own[kOwn];
  alignas(16) uint32_t bins[kBins];
  union {
    alignas(16) uint32_t parts[kBlocks][kOwn];  // of this block's own bins, from all blocks
    Rank list[kListed];
  };
  union {
    alignas(16) float logits[kSlice];
    struct {  // in the first block, when it has seen its logits
      Listed unsorted[kListed];
      Sorted sorted[kListed];
    };
  };
};

// 2^(j/16)
__constant__ double kPowers[16] = {
    0x1.0000000000000p+0, 0x1.0b5586cf9890fp+0, 0x1.172b83c7d517bp+0, 0x1.2387a6e756238p+0,
    0x1.306fe0a31b715p+0, 0x1.3dea64c123422p+0, 0x1.4bfdad5362a27p+0, 0x1.5ab07dd485429p+0,
    0x1.6a09e667f3bcdp+0, 0x1.7a11473eb0187p+0, 0x1.8ace5422aa0dbp+0, 0x1.9c49182a3f090p+0,
    0x1.ae89f995ad3adp+0, 0x1.c199bdd85529cp+0, 0x1.d5818dcfba487p+0, 0x1.ea4afa2a490dap+0};

// p without its denominator, exp((x - most) / temperature), to 9e-15 of it; `rate` is 16 / (temperature
// ln 2).
// 2^(n/16) from a table times 2^(r/16), |r| <= 1/2, by Chebyshev's polynomial.
__device__ __forceinline__ double p_of(float x, double most, double rate, const double* powers) {
  constexpr double kRound = 0x1.8p52;
  const double d = double(x) - most, shifted = fma(d, rate, kRound), r = fma(d, rate, kRound - shifted);
  const int n = __double2loint(shifted);
  double h = fma(r, 0x1.5d893e58acc63p-30, 0x1.3b2c4ac7da565p-23);
  h = fma(r, h, 0x1.c6b08d6faa1bep-17);
  h = fma(r, h, 0x1.ebfbdff6988c8p-11);
  h = fma(r, h, 0x1.62e42fefa39efp-5);
  const double power = powers[n & 15], p = fma(power * r, h, power);
  return __hiloint2double(__double2hiint(p) + (n >> 4) * 0x100000, __double2loint(p));
}

struct Places {
  static constexpr float kZero = 0x1p23f;  // what is added to a place: behind it floats are whole numbers
  float most, scale;                       // places a logit
  float slope, bend;                       // of what a token adds to a bin
  __device__ __forceinline__ float at(float x) const { return __fmaf_rd(most - x, scale, kZero); }
  // Not of NaN, -inf, nor of what is too far behind to count.
  __device__ __forceinline__ static bool counts(float at) { return at < kZero + float(kPlaces); }
  // Of these: kPlaces and beyond.
  __device__ __forceinline__ int of(float x) const { return __float_as_int(at(x)) - __float_as_int(kZero); }
  // p, where that at place `begin` (plus kZero) is kWhole: exp(-y) to y^3 / 6.
  __device__ __forceinline__ uint32_t share(float x, float begin) const {
    const float behind = __fmaf_rn(most - x, scale, kZero - begin);
    return __float_as_uint(fmaf(fmaf(bend, behind, slope), behind, kZero + float(kWhole))) % (2 * kWhole);
  }
};
// A target of the sums of p in bins is wrong by less than this share.
template <bool kTopK> constexpr float kSlack = kTopK ? 0.006f : 4e-5f;

// One row, as one block of its cluster sees it.
template <bool kTopK> struct Row {
  const SampleArgs& a;
  ClusterShared& c;
  int t, rank, n;  // thread; block; logits of the block
  int64_t begin;
  double rate, u = 0;
  Places places{};
  float step_log2 = 0, step = 0;
  bool by_count = false, by_p = false, few = false;
  // Of each query: between which places its answer is; 2^shift places are a bin.
  int first[kQueries] = {0, 0, 0}, last[kQueries] = {kPlaces - 1, kPlaces - 1, kPlaces - 1};
  int shift[kQueries] = {kBinPlaces, kBinPlaces, kBinPlaces};
  int turn = 1;  // which mailbox is next, and the parity of its phase
  uint32_t parity = 0;

  template <class Body> __device__ __forceinline__ void each_four(const Body& body) const {
#pragma unroll 1
    for (int at = 4 * t; at < n; at += kStep) {
      const float4 four = *reinterpret_cast<const float4*>(c.logits + at);
      const float x[4] = {four.x, four.y, four.z, four.w};
      body(x, at);
    }
  }

  // Round 1: every query has a window of its own.
  __device__ __forceinline__ void fill_bins(int round) {
    if (round == 0) {
      each_four([&](const float* x, int) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const float at = places.at(x[k]);
          const uint32_t bits = __float_as_uint(at);
          const uint32_t its = kTopK ? kWhole + (bits >> (kBinPlaces - 3) & 7)
                                     : places.share(x[k], __uint_as_float(bits & ~((1u << kBinPlaces) - 1)));
          if (Places::counts(at)) atomicAdd(&c.bins[bits >> kBinPlaces & (kBins - 1)], its);
        }
      });
    } else {
      each_four([&](const float* x, int) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int place = places.of(x[k]);
#pragma unroll
          for (int q = kTopK ? kByCount : kByP; q < kQueries; ++q) {
            if (place < first[q] || place > last[q]) continue;
            const int behind = place - first[q], bin = behind >> shift[q];
            const uint32_t its =
                kTopK ? kWhole + (behind << 3 >> shift[q] & 7)
                      : places.share(x[k], Places::kZero + float(first[q] + (bin << shift[q])));
            atomicAdd(&c.bins[q * kWindow + bin], its);
          }
        }
      });
    }
  }

  // Over all blocks: each adds up its own bins, and all get all sums. In a sum with top_k: the tokens, and in
  // 14 bits the mean of where in the bin they are.
  __device__ __forceinline__ void add_up(int round) {
    if (t == 0)
      arrive_expecting(&c.parts_here, sizeof(c.parts)), arrive_expecting(&c.sums_here, sizeof(c.bins));
    __syncthreads();
    constexpr int kFours = kOwn / 4;
    const uint32_t to = uint32_t(t / kFours);
    if (to < kBlocks)
      push_words(&c.bins[4 * t], address_in(&c.parts[rank][t % kFours * 4], to),
                 address_in(&c.parts_here, to));
    if (t < kOwn) {
      wait_cluster(&c.parts_here, uint32_t(round));
      if (kTopK) {
        uint32_t tokens = 0, eighths = 0;
        for (int b = 0; b < kBlocks; ++b) tokens += c.parts[b][t] / kWhole, eighths += c.parts[b][t] % kWhole;
        const float mean = (float(eighths) / fmaxf(float(tokens), 1) + 0.5f) / 8;
        c.own[t] = tokens << 14 | uint32_t(mean * 0x1p14f);
      } else {
        uint64_t sum = 0;
        for (int b = 0; b < kBlocks; ++b) sum += c.parts[b][t];
        c.own[t] = __float_as_uint(float(sum));
      }
    }
    __syncthreads();
    // What comes back lies where the parts of the same bins lay, and these have been sent.
    if (to < kBlocks)
      push_words(&c.own[t % kFours * 4], address_in(&c.bins[kOwn * rank + t % kFours * 4], to),
                 address_in(&c.sums_here, to));
    wait_cluster(&c.sums_here, uint32_t(round));
  }

  // Narrows first and last of all queries; how many tokens they hold, or a few more. In the first round all
  // bins belong to all queries, in the second each query has a window of its own.
  __device__ __forceinline__ float narrow(int round) {
    constexpr int kWindowWarps = kWindow / 64;
    const int warp = t / 32, lane = t % 32;
    const int window = round == 0 ? 0 : min(warp / kWindowWarps, kQueries - 1);
    int origin = 0, wide = kBinPlaces, from_warp = 0;
    float mass_off = 0, count_off = 0;
    if (round > 0) {
      origin = window == 0 ? first[0] : window == 1 ? first[1] : first[2];
      wide = window == 0 ? shift[0] : window == 1 ? shift[1] : shift[2];
      mass_off = c.mass_before[window], count_off = c.count_before[window];
      from_warp = window * kWindowWarps;
    }
    const int mine = 2 * (t - 32 * from_warp);  // the first of this thread's two bins
    const uint2 two = *reinterpret_cast<const uint2*>(&c.bins[2 * t]);
    __syncthreads();  // what stands before the window has been read
    float mass[2], count[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const uint32_t its = k == 0 ? two.x : two.y;
      float place = float(origin + ((mine + k) << wide));
      if (kTopK) {
        count[k] = float(its >> 14);
        place += float(its % (1 << 14)) * 0x1p-14f * float(1 << wide);
        mass[k] = count[k] * exp2f(-step_log2 * place);
      } else {
        mass[k] = __uint_as_float(its) * (1.0f / float(kWhole));
        count[k] = mass[k] * (1 + 1.1f * step * float(1 << wide));  // at least as many
        mass[k] *= exp2f(-step_log2 * place);
      }
    }
    *reinterpret_cast<uint2*>(&c.bins[2 * t]) = {0, 0};  // for the next round
    float mass_run = mass[0] + mass[1], count_run = count[0] + count[1];
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const float m = __shfl_up_sync(kAll, mass_run, d), k = __shfl_up_sync(kAll, count_run, d);
      if (lane >= d) mass_run += m, count_run += k;
    }
    if (lane == 31) c.masses[warp] = mass_run, c.counts[warp] = count_run;
    if (t < kQueries) c.first[t] = c.last[t] = kBins;
    __syncthreads();
    float mass_all = 0, count_all = 0;
    if (round == 0) {
      for (int w = 0; w < kWarps; ++w) mass_all += c.masses[w], count_all += c.counts[w];
      if (t == 0) c.mass_of_all = mass_all;
      by_count = kTopK && float(a.top_k) < count_all;
    } else {
      mass_all = c.mass_of_all;
    }
    for (int w = from_warp; w < warp; ++w) mass_off += c.masses[w], count_off += c.counts[w];
    float masses[3], counts[3];  // before each of this thread's bins, and behind them
    masses[2] = mass_off + mass_run, counts[2] = count_off + count_run;
    masses[0] = __shfl_up_sync(kAll, masses[2], 1), counts[0] = __shfl_up_sync(kAll, counts[2], 1);
    if (lane == 0) masses[0] = mass_off, counts[0] = count_off;
    masses[1] = masses[0] + mass[0], counts[1] = counts[0] + count[0];

    const auto cross = [&](int q, float target, int* bin) {
      if (round > 0 && window != q) return;
#pragma unroll
      for (int k = 0; k < 2; ++k)
        if (masses[k] <= target && target < masses[k + 1]) atomicMin(bin, mine + k);
    };
    const auto settle =
        [&](int q) {  // the bins that were found, as places, and what lies before and behind them
          const int bins = round == 0 ? kBins : ((last[q] - first[q]) >> shift[q]) + 1;
          const int low = min(c.first[q], bins - 1), high = min(c.last[q], bins - 1);
          if (round == 0 || window == q) {
#pragma unroll
            for (int k = 0; k < 2; ++k) {
              if (low == mine + k) c.count_before[q] = counts[k], c.mass_before[q] = masses[k];
              if (high == mine + k) c.count_after[q] = counts[k + 1], c.mass_after[q] = masses[k + 1];
            }
          }
          last[q] = min(last[q], first[q] + ((high + 1) << shift[q]) - 1);
          first[q] += low << shift[q];
          if (q != kByCount && by_count) last[q] = min(last[q], last[kByCount]);
        };
    float low = mass_all, high = mass_all, kept = count_all;
    if (kTopK && by_count) {
      const float k = float(a.top_k);
      if (round == 0 || window == kByCount) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
          if (counts[i] < k && k <= counts[i + 1]) c.first[kByCount] = c.last[kByCount] = mine + i;
      }
      __syncthreads();
      settle(kByCount);
      __syncthreads();
      low = c.mass_before[kByCount], high = c.mass_after[kByCount], kept = c.count_after[kByCount];
    }
    if (round == 0 && kept <= float(kListed)) {  // all that can be drawn is sorted
      few = true;
      if (!by_count) last[kByCount] = kPlaces - 1;
      first[0] = first[1] = first[2] = 0, last[1] = last[2] = last[0];
      return 0;
    }
    if (by_p) {
      low *= float(a.top_p) * (1 - kSlack<kTopK>), high *= float(a.top_p) * (1 + kSlack<kTopK>);
      cross(kByP, low, &c.first[kByP]), cross(kByP, high, &c.last[kByP]);
      __syncthreads();
      settle(kByP);
      high += exp2f(-step_log2 * float(first[kByP]));  // the token with which it is reached
    }
    cross(kDrawn, low * float(u) * (1 - kSlack<kTopK>), &c.first[kDrawn]);
    cross(kDrawn, high * float(u) * (1 + kSlack<kTopK>), &c.last[kDrawn]);
    __syncthreads();
    settle(kDrawn);
    __syncthreads();
    float held = c.count_after[kDrawn] - c.count_before[kDrawn];
    if (by_p) held += c.count_after[kByP] - c.count_before[kByP];
    if (by_count) held += c.count_after[kByCount] - c.count_before[kByCount];
    return held;
  }

  // Windows as narrow as what each query is left with; none for what is not asked.
  __device__ __forceinline__ void open_windows() {
    if (!by_count) first[kByCount] = kPlaces, last[kByCount] = kPlaces - 1;
    if (!by_p) first[kByP] = kPlaces, last[kByP] = kPlaces - 1;
#pragma unroll
    for (int q = 0; q < kQueries; ++q) shift[q] = 32 - __clz((last[q] - first[q]) / kWindow);
  }

  __device__ __forceinline__ bool asked_about(int place) const {
    return (place >= first[kDrawn] && place <= last[kDrawn]) ||
           (place >= first[kByP] && place <= last[kByP]) ||
           (kTopK && place >= first[kByCount] && place <= last[kByCount]);
  }

  // The tokens in question, and the sums of p, to the first block.
  __device__ __forceinline__ void send() {
    const uint32_t barrier = address_in(&c.list_here, 0);
    const auto list = [&](unsigned which, int at) {
#pragma unroll 1
      for (int k = 0; k < 4; ++k)
        if (which >> k & 1) {
          const int slot =
              atomicAdd(&c.found, 1);  // in any order: they are sorted next, and no two are equal
          if (slot < kListed) c.local[slot] = uint16_t(at + k);
        }
    };
    double all = 0, above_k = 0, above_p = 0, above_d = 0;
    if (few) {
      each_four([&](const float* x, int at) {
        unsigned which = 0;
#pragma unroll
        for (int k = 0; k < 4; ++k)
          if (places.of(x[k]) <= last[kDrawn]) which |= 1u << k;
        if (which != 0) list(which, at);
      });
    } else {
      const double most = double(places.most);
      each_four([&](const float* x, int at) {
        unsigned which = 0;
        double p[4];
        int place[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) place[k] = places.of(x[k]), p[k] = p_of(x[k], most, rate, c.powers);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if (place[k] < kPlaces) all += p[k];
          if (place[k] < first[kDrawn]) above_d += p[k];
          if (by_p && place[k] < first[kByP]) above_p += p[k];
          if (kTopK && place[k] < first[kByCount]) above_k += p[k];
          if (asked_about(place[k])) which |= 1u << k;
        }
        if (which != 0) list(which, at);
      });
    }
    all = warp_sum(all), above_p = warp_sum(above_p), above_d = warp_sum(above_d);
    if (kTopK) above_k = warp_sum(above_k);
    if (t % 32 == 0)
      c.sums[kByCount][t / 32] = above_k, c.sums[kByP][t / 32] = above_p, c.sums[kDrawn][t / 32] = above_d,
                           c.sums[kQueries][t / 32] = all;
    __syncthreads();
    const int found = min(c.found, kListed);
    if (t <= kQueries) {
      if (t == 0) c.at = found > 0 ? add_in(&c.listed, 0, found) : 0;
      double sum = 0;
      for (int w = 0; w < kWarps; ++w) sum += c.sums[t][w];
      post({sum, found, 0}, address_in(&c.above[rank][t], 0), barrier);
    }
    __syncthreads();
    const int at = c.at, sent = max(0, min(found, kListed - at));
    if (t == 0) arrive_expecting_in(&c.list_here, 0, uint32_t(sizeof(c.above[0]) + sent * sizeof(Rank)));
    if (t < sent) {
      const int i = c.local[t];
      push_rank(rank_of(key_of(c.logits[i]), begin + i), address_in(&c.list[at + t], 0), barrier);
    }
  }

  // In the first block: the answers.
  __device__ __forceinline__ Rank choose() {
    wait_cluster(&c.list_here, 0);
    double above[kQueries + 1] = {0, 0, 0, 0};
    int listed = 0;
#pragma unroll 1
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int q = 0; q <= kQueries; ++q) above[q] += c.above[b][q].sum;
      listed += c.above[b][0].count;
    }
    listed = min(listed, kListed);

    Listed mine{};
    int place = 0;
    if (t < listed) {
      const Rank rank_of_it = c.list[t];
      const float x = logit_of(key_in(rank_of_it));
      place = places.of(x);
      mine = {rank_of_it, __double2ull_rn(p_of(x, double(places.most), rate, c.powers) * (1 / kWeight))};
      c.unsorted[t] = mine;
    }
    __syncthreads();
    if (t < listed) {
      Weight before = 0;
      int at = 0;
#pragma unroll 4
      for (int j = 0; j < listed; ++j) {
        const Listed other = c.unsorted[j];
        if (other.rank > mine.rank) before += other.weight, ++at;
      }
      c.sorted[at] = {mine.rank, before, before + mine.weight, place, 0};
    }
    __syncthreads();
    Sorted token{};
    if (t < listed) {
      token = c.sorted[t];
      const int earlier = t > 0 ? c.sorted[t - 1].place : -1;
#pragma unroll
      for (int q = 0; q < kQueries; ++q)
        if (token.place >= first[q] && earlier < first[q]) c.start[q] = t;
    }
    if (t == 0) c.chosen = 0;
    __syncthreads();

    int limit = listed;  // tokens from here on are not kept
    double kept = few ? double(c.sorted[listed - 1].with) * kWeight : above[kQueries];
    // The first token at the places of `q` with reached(sum with it, how many of these precede it); the last
    // where rounding hides it.
    const auto ask = [&](int q, const auto& reached) {
      const int start = max(c.start[q], 0);
      const Weight base = c.sorted[start].before;
      const auto sum = [&](Weight w) { return (few ? 0.0 : above[q]) + double(w - base) * kWeight; };
      if (t >= start && t < limit && token.place <= last[q]) {
        const bool is_last = t + 1 == limit || c.sorted[t + 1].place > last[q];
        if ((t == start || !reached(sum(token.before), t - 1 - start)) &&
            (is_last || reached(sum(token.with), t - start)))
          c.chosen = t;
      }
      __syncthreads();
      const int at = c.chosen;
      kept = sum(c.sorted[at].with), limit = at + 1;
      __syncthreads();
      if (t == 0) c.chosen = 0;
      __syncthreads();
      return at;
    };
    if (by_count) {
      const int before = few ? 0 : int(c.count_before[kByCount]);
      ask(kByCount, [&](double, int i) { return before + i + 1 >= int(a.top_k); });
    }
    if (by_p) {
      const double enough = a.top_p * kept;
      ask(kByP, [&](double so_far, int) { return so_far >= enough; });
    }
    const double target = u * kept;
    return c.sorted[ask(kDrawn, [&](double so_far, int) { return so_far > target; })].rank;
  }

  // The tokens of rank `from` and above: the sum of their p, and how many they are.
  __device__ __forceinline__ Mail look(Rank from, uint32_t least) {
    double sum = 0;
    int count = 0;
#pragma unroll 4
    for (int i = t; i < n; i += kThreads) {
      const float x = c.logits[i];
      const uint32_t key = key_of(x);
      if (key < least || rank_of(key, begin + i) < from) continue;
      sum += x == places.most ? 1.0 : p_of(x, double(places.most), rate, c.powers);
      ++count;
    }
    sum = warp_sum(sum), count = warp_sum(count);
    __syncthreads();
    if (t % 32 == 0) c.sums[0][t / 32] = sum, c.sums[1][t / 32] = count;
    __syncthreads();
    if (t == 0) arrive_expecting(&c.told[turn], kBlocks * sizeof(Mail));
    if (t < kBlocks) {
      double all = 0, tokens = 0;
      for (int w = 0; w < kWarps; ++w) all += c.sums[0][w], tokens += c.sums[1][w];
      post({all, int(tokens), 0}, address_in(&c.mail[turn][rank], uint32_t(t)),
           address_in(&c.told[turn], uint32_t(t)));
    }
    wait_cluster(&c.told[turn], parity);
    Mail total{};
    for (int b = 0; b < kBlocks; ++b) total.sum += c.mail[turn][b].sum, total.count += c.mail[turn][b].count;
    if (turn == 1) parity ^= 1;  // both have been used
    turn = 1 - turn;
    return total;
  }
  __device__ __forceinline__ Rank draw_by_bits(float lowest, float farthest) {
    constexpr uint32_t kLeastKey = 0x00800000;  // of the least number that is not -inf
    const uint32_t most = key_of(places.most),
                   least = max(max(kLeastKey, key_of(lowest)),
                               key_of(float(double(places.most) - double(farthest))));
    const int open = 32 - __clz(most ^ least);  // bits in which keys differ
    Mail kept = look(0, least);
    const auto last_reached = [&](const auto& reached) {
      Rank r = Rank(open < 32 ? most >> open << open : 0) << 32;
      for (int bit = 31 + open; bit >= 0; --bit) {
        if (bit == 31) r |= 0xFFFE0000u, bit = 16;  // ids are below 2^17
        if (reached(look(r | Rank(1) << bit, least))) r |= Rank(1) << bit;
      }
      kept = look(r, least);
      return r;
    };
    if (a.top_k > 0 && a.top_k < kept.count) last_reached([&](const Mail& m) { return m.count >= a.top_k; });
    if (a.top_p < 1) {
      const double enough = a.top_p * kept.sum;
      const int tokens = kept.count;
      last_reached([&](const Mail& m) { return m.sum >= enough || m.count >= tokens; });
    }
    const double target = u * kept.sum;
    const int tokens = kept.count;
    return last_reached([&](const Mail& m) { return m.sum > target || m.count >= tokens; });
  }
};

template <bool kTopK> __global__ void __launch_bounds__(kThreads, 2)
    sample_kernel(const __grid_constant__ SampleArgs a, int64_t width, double rate, float farthest) {
  extern __shared__ __align__(16) uint8_t memory[];
  ClusterShared& c = *reinterpret_cast<ClusterShared*>(memory);
  const int t = int(threadIdx.x), rank = int(rank_in_cluster());
  const int64_t row = blockIdx.x / kBlocks, begin = rank * width;
  const int n = int(max(int64_t(0), min(width, a.logits.cols - begin)));
  if (t == 0) {
    for (Barrier& b : c.loaded) barrier_init(&b, 1);
    for (Barrier* b : {&c.told[0], &c.told[1], &c.parts_here, &c.sums_here}) barrier_init(b, 1);
    barrier_init(&c.list_here, kBlocks);
    barrier_init_done();
  }
  cluster_arrive_relaxed();
  start();
  const int chunk = int((width + kStep * kChunks - 1) / (kStep * kChunks)) * kStep;
  if (t == 0) {
    const float* from = a.logits.data + row * a.logits.ld + begin;
    for (int i = 0; i < kChunks; ++i) {
      const int some = max(0, min(chunk, n - i * chunk)) * 4;
      arrive_expecting(&c.loaded[i], uint32_t(some));
      if (some > 0) copy_in(c.logits + i * chunk, from + i * chunk, uint32_t(some), &c.loaded[i]);
    }
    c.found = c.listed = 0;
  }
  if (t < 16) c.powers[t] = kPowers[t];
  if (t < kQueries) c.start[t] = -1;
  *reinterpret_cast<uint2*>(&c.bins[2 * t]) = {0, 0};
  Row<kTopK> its{.a = a, .c = c, .t = t, .rank = rank, .n = n, .begin = begin, .rate = rate};
  if (t == 32) c.u = uniform(a.seed, 0x53414D50, uint64_t(int64_t(a.positions[row])));
  its.by_p = a.top_p < 1;

  float most = -INFINITY, least = INFINITY;
  __syncthreads();  // the barriers are there, and u
  its.u = c.u;
  for (int i = 0; i < kChunks; ++i) {
    wait(&c.loaded[i], 0);
    const int end = min(n, (i + 1) * chunk);
#pragma unroll 2
    for (int at = i * chunk + 4 * t; at < end; at += kStep) {
      const float4 x = *reinterpret_cast<const float4*>(c.logits + at);
      most = fmaxf(most, fmaxf(fmaxf(x.x, x.y), fmaxf(x.z, x.w)));  // passes over NaN
      least = fminf(least, fminf(fminf(x.x, x.y), fminf(x.z, x.w)));
    }
  }
  if (least == -INFINITY) {  // once more, past what cannot be drawn
    least = INFINITY;
    its.each_four([&](const float* x, int) {
#pragma unroll
      for (int k = 0; k < 4; ++k) least = fminf(least, x[k] > -INFINITY ? x[k] : INFINITY);
    });
  }
  most = warp_max(most), least = -warp_max(-least);
  if (t % 32 == 0) c.masses[t / 32] = most, c.counts[t / 32] = least;
  if (t == 0) arrive_expecting(&c.told[0], kBlocks * sizeof(Mail));
  cluster_wait();
  __syncthreads();
  if (t < kBlocks) {
    for (const float x : c.masses) most = fmaxf(most, x);
    for (const float x : c.counts) least = fminf(least, x);
    push(address_in(&c.mail[0][rank], uint32_t(t)), address_in(&c.told[0], uint32_t(t)), most, least, 0, 0);
  }
  wait_cluster(&c.told[0], 0);
  for (const Mail& mail : c.mail[0]) {
    const float2 block = *reinterpret_cast<const float2*>(&mail);
    most = fmaxf(most, block.x), least = fminf(least, block.y);
  }
  if (most == -INFINITY) {  // all blocks know, and leave
    if (rank == 0 && t == 0) a.tokens[row] = 0;
    return;
  }
  const float range = fmaxf(fminf(most - least, farthest), 1e-30f);
  its.step_log2 = float(rate) / 16 * (range / (kPlaces - 1.0f));
  its.step = its.step_log2 * 0.69314718f;
  its.places = {.most = most,
                .scale = (kPlaces - 1.0f) / range,
                .slope = -float(kWhole) * its.step,
                .bend = 0.5f * float(kWhole) * its.step * its.step};

  Rank drawn = 0;
  bool many = most == INFINITY;
  if (!many) {
#pragma unroll 1
    for (int round = 0;; ++round) {
      its.fill_bins(round);
      its.add_up(round);
      const float held = its.narrow(round);
      many = held > float(kListed);
      if (held <= float(kAtEase) || round == 1) break;
      its.open_windows();
    }
    if (!its.few && !its.by_p) its.first[kByP] = its.first[kDrawn], its.last[kByP] = its.last[kDrawn];
    if (!its.few && !its.by_count)
      its.first[kByCount] = its.first[kDrawn], its.last[kByCount] = its.last[kDrawn];
  }
  if (many) {
    drawn = its.draw_by_bits(least, farthest);
    cluster_meet();  // nobody leaves while others may still tell him something
  } else {
    its.send();
    if (rank == 0) drawn = its.choose();
  }
  if (rank == 0 && t == 0) a.tokens[row] = id_in(drawn);
}

}  // namespace

bool takes_rows(const Sample& q) {
  const Tensor& x = q.logits;
  return x.cols % 4 == 0 && x.cols > kSlice / 2 && x.cols <= kBlocks * kSlice &&
         reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && (x.rows == 1 || x.ld % 4 == 0);
}

void sample_rows(const Queue& queue, const Sample& q) {
  const SampleArgs args{.logits = q.logits.matrix<const float>(),
                        .positions = q.positions.vector<const int32_t>().data,
                        .tokens = q.tokens.vector<int32_t>().data,
                        .temperature = q.temperature,
                        .top_p = q.top_p,
                        .top_k = q.top_k,
                        .seed = q.seed};
  const int64_t width = (q.logits.cols + 4 * kBlocks - 1) / (4 * kBlocks) * 4;
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = kBlocks;
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(q.logits.rows * kBlocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes =
      offsetof(ClusterShared, logits) +
      std::max(size_t(width) * sizeof(float), kListed * (sizeof(Listed) + sizeof(Sorted)));
  config.stream = queue.stream;
  config.attrs = attributes;
  config.numAttrs = queue.overlap ? 2 : 1;
  const auto kernel = q.top_k > 0 ? sample_kernel<true> : sample_kernel<false>;
  cudaError_t code =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(sizeof(ClusterShared)));
  if (code == cudaSuccess)
    code = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                int(cudaSharedmemCarveoutMaxShared));
  if (code == cudaSuccess)
    code = cudaLaunchKernelEx(&config, kernel, args, width, 16 / (q.temperature * std::log(2.0)),
                              float(38 * q.temperature));
  launched(code, "sample");
}

}  // namespace cachalot::cuda::hopper
