// Drawing a token from a row of logits (ops/sample.h) without sorting it, by one block (sample.cu); and the
// order of tokens, which a cluster of blocks (hopper/sample_rows.cu) shares.
//
// Tokens stand in one order: larger logit first, then lower id. What is asked is always the same: which token
// is the first one at which the running count (top_k) or the running sum of p (top_p, the draw) reaches a
// target? The answer is bracketed, a sixteenth of the bracket after the other, until few tokens are left;
// those are sorted and walked. When all that is kept is few, top_p and the draw walk it as the contract says
// it, one addition after the other; else the sums of what lies above the bracket are taken in another, fixed
// order of additions.
#pragma once

#include <cmath>
#include <cstdint>

#include "backend/cuda/reduce.cuh"
#include "tensor/tensor.h"

namespace cachalot::cuda::drawing {

constexpr int kThreads = 512;
constexpr int kRegions = 16;  // of a bracket; each warp adds up one of them
constexpr int kFew = 256;     // tokens that are sorted
static_assert(kRegions == kThreads / 32);

using Rank = unsigned long long;  // the larger, the earlier: key of the logit, then ~id

// Keys order like numbers, -0 equal to 0; 0 for what is never drawn: NaN and -inf.
__device__ inline uint32_t key_of(float x) {
  if (!(x > -INFINITY)) return 0;
  const uint32_t u = __float_as_uint(x == 0 ? 0.0f : x);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}
__device__ inline float logit_of(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key);
}
__device__ inline Rank rank_of(uint32_t key, int64_t id) { return Rank(key) << 32 | uint32_t(~uint32_t(id)); }
__device__ inline uint32_t key_in(Rank rank) { return uint32_t(rank >> 32); }
__device__ inline int32_t id_in(Rank rank) { return int32_t(~uint32_t(rank)); }

struct SampleArgs {
  Matrix<const float> logits;
  const int32_t* positions;
  int32_t* tokens;
  double temperature, top_p;
  int64_t top_k;
  uint64_t seed;
};

// base/rng.h: random_uniform(), on the device.
__device__ inline double uniform(uint64_t seed, uint64_t stream, uint64_t index) {
  uint32_t c0 = uint32_t(index), c1 = uint32_t(index >> 32), c2 = uint32_t(stream),
           c3 = uint32_t(stream >> 32);
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c0, p1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0, c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1, c3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const uint64_t bits = (uint64_t(c0) << 32 | c1) >> 11;
  return (double(bits) + 0.5) * 0x1p-53;
}

// exp(x) for -745 < x <= 0 to 2e-16 of it: 2^(j/32) from a table times a polynomial, half as long as the
// library's, which knows every x.
__device__ inline double exp_down(double x, const double* powers) {
  constexpr double kSteps = 0x1.71547652b82fep+5;                                       // 32 / ln 2
  constexpr double kStepHigh = 0x1.62e42fee00000p-6, kStepLow = 0x1.a39ef35793c76p-38;  // ln 2 / 32
  constexpr double kRound = 0x1.8p52;
  const double shifted = fma(x, kSteps, kRound), steps = shifted - kRound;
  const int n = int(__double2loint(shifted));
  const double r = fma(-steps, kStepLow, fma(-steps, kStepHigh, x));
  double p = fma(r, 1.0 / 720, 1.0 / 120);
  p = fma(r, p, 1.0 / 24);
  p = fma(r, p, 1.0 / 6);
  p = fma(r, p, 0.5);
  p = fma(r * r, p, r);
  const double power = powers[n & 31];
  const double result = fma(power, p, power);
  return n < -1000 * 32
             ? 0.0
             : __hiloint2double(__double2hiint(result) + (n >> 5) * 0x100000, __double2loint(result));
}

// p without its denominator: the largest is 1, also when its logit is +inf.
struct Odds {
  double inverse_temperature;
  float most;            // the largest logit
  const double* powers;  // 2^(j/32)
  __device__ double p(float logit) const {
    return logit == most ? 1.0 : exp_down((double(logit) - double(most)) * inverse_temperature, powers);
  }
};

// Tokens whose key is in [low, high); or, `equal`, those of one key, by their place: n - id is in [low,
// high).
struct Bracket {
  uint32_t low, high;
  bool equal = false;
  uint32_t key = 0;
  int64_t n = 0;
  __device__ float bottom() const { return logit_of(equal ? key : low); }
  __device__ float top() const { return logit_of(equal ? key : high - 1); }
  __device__ uint32_t value(uint32_t its_key, int64_t id) const {  // 0: not in it
    return !equal ? its_key : its_key == key ? uint32_t(n - id) : 0;
  }
  __device__ bool holds(uint32_t its_value) const { return its_value >= low && its_value < high; }
};

// A bracket in regions, the largest first: region r lies between cuts[r] and cuts[r-1].
struct Table {
  uint32_t cuts[kRegions - 1];
  double sums[kRegions];
  int counts[kRegions];
};

// What each thread found in each region: nobody else touches it, so the sums have one order.
struct Regions {
  double sums[kRegions][kThreads];
  int counts[kRegions][kThreads];
};

struct Query {
  bool by_count = false;  // the running count reaches `target`; else the running sum of p does
  bool beyond = false;    // reaching means to exceed, not to equal
  double target = 0;
  __device__ bool reached(double count, double sum) const {
    const double value = by_count ? count : sum;
    return beyond ? value > target : value >= target;
  }
};
struct Answer {
  Rank rank;   // of the token; the last one when the target is never reached
  double sum;  // of p up to and with it
};

// What is to be drawn from: keys in [least, most], ranks of at least `from`.
struct Task {
  uint32_t least, most;
  Rank from;
  int64_t n;  // of the row
  int64_t top_k;
  double top_p;
  double u;
  double enough = -1;  // what top_p amounts to, where more than these tokens counts
};

struct Shared {
  Table table, first;  // of the bracket at hand; of everything
  Rank unsorted[kFew], sorted[kFew];
  double p[kFew];
  int listed;
  Answer answer;
  double powers[32];
};

// Adds p[0], p[1], ... to `sum` in order until reached(i, sum), which stays true from then on; returns that
// i, or the last one. Eight additions are made before anyone asks.
template <class Reached> __device__ int walk(const double* p, int n, double& sum, const Reached& reached) {
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    double ahead = sum;
#pragma unroll
    for (int k = 0; k < 8; ++k) ahead += p[i + k];
    if (reached(i + 7, ahead)) break;
    sum = ahead;
  }
  for (; i < n; ++i) {
    sum += p[i];
    if (reached(i, sum)) return i;
  }
  return n - 1;
}

// How many tokens of `b` and of a rank of at least `from` each region holds, and the sum of their p: warp r
// gets those of region r. Cut at equal steps of the logits (`by_value`, where they are finite) or of the
// values.
template <class Tokens> __device__ void fill_regions(const Tokens& tokens, const Odds& odds, const Bracket& b,
                                                     Rank from, bool by_value, bool with_sums,
                                                     Regions& regions, Table& table, double& sum,
                                                     int& count) {
  const float top = b.top(), bottom = b.bottom();
  by_value = by_value && !b.equal && isfinite(top) && isfinite(bottom) && isfinite(top - bottom);
  const float steps = kRegions / (by_value ? top - bottom : float(b.high - b.low));  // inf: the loops will do
  __syncthreads();  // the table before has been read
  if (threadIdx.x < kRegions - 1) {
    // Never two at one place, nor outside, where there is room; a region may be empty.
    const float share = float(threadIdx.x + 1) / kRegions;
    const uint32_t wanted = by_value ? key_of(top - (top - bottom) * share)
                                     : b.high - uint32_t(double(b.high - b.low) * double(share));
    table.cuts[threadIdx.x] = min(max(wanted, b.low + 1), b.high - 1);
  }
#pragma unroll
  for (int r = 0; r < kRegions; ++r) regions.sums[r][threadIdx.x] = 0, regions.counts[r][threadIdx.x] = 0;
  __syncthreads();
  tokens.each([&](float x, int64_t id) {
    if (!(x >= bottom && x <= top)) return;  // most are done here; the keys decide
    const uint32_t key = key_of(x), value = b.value(key, id);
    if (!b.holds(value) || rank_of(key, id) < from) return;
    // How many cuts lie above it: guessed, then made sure of.
    int region = by_value ? int((top - x) * steps) : int(float(b.high - 1 - value) * steps);
    region = max(0, min(kRegions - 1, region));
    while (region > 0 && value >= table.cuts[region - 1]) --region;
    while (region < kRegions - 1 && value < table.cuts[region]) ++region;
    ++regions.counts[region][threadIdx.x];
    if (with_sums) regions.sums[region][threadIdx.x] += odds.p(x);
  });
  __syncthreads();
  const int r = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  sum = 0, count = 0;
#pragma unroll 4
  for (int t = lane; t < kThreads; t += 32) sum += regions.sums[r][t], count += regions.counts[r][t];
  sum = warp_sum(sum), count = warp_sum(count);
}

// A row in global memory.
struct InMemory {
  const float* x;
  int64_t n;
  // body(logit, id) for this thread's, eight under way at once; always in the same order. -inf is no token.
  template <class Body> __device__ void each(const Body& body) const {
    constexpr int kAtOnce = 8;
    for (int64_t base = threadIdx.x; base < n; base += kAtOnce * kThreads) {
      float logits[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int64_t i = base + k * kThreads;
        logits[k] = i < n ? x[i] : -INFINITY;
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) body(logits[k], base + k * kThreads);
    }
  }
};

template <class Source> struct OneBlock {
  const Source& source;
  const Odds& odds;
  Regions& regions;
  Shared& s;

  __device__ void divide(const Bracket& b, Rank from, bool by_value, bool with_sums) {
    double sum;
    int count;
    fill_regions(source, odds, b, from, by_value, with_sums, regions, s.table, sum, count);
    const int r = int(threadIdx.x) / 32;
    if (threadIdx.x % 32 == 0) s.table.sums[r] = sum, s.table.counts[r] = count;
    __syncthreads();
  }
  // The tokens of `b` of a rank of at least `from`, sorted, and their p; kFew of them at most.
  __device__ int sort(const Bracket& b, Rank from) {
    const float bottom = b.bottom(), top = b.top();
    __syncthreads();
    if (threadIdx.x == 0) s.listed = 0;
    __syncthreads();
    source.each([&](float x, int64_t id) {
      if (!(x >= bottom && x <= top)) return;
      const uint32_t key = key_of(x);
      if (!b.holds(b.value(key, id)) || rank_of(key, id) < from) return;
      const int at = atomicAdd(&s.listed, 1);  // in any order: they are sorted next, and no two are equal
      if (at < kFew) s.unsorted[at] = rank_of(key, id);
    });
    __syncthreads();
    const int count = min(s.listed, kFew);
    if (int(threadIdx.x) < count) {
      const Rank mine = s.unsorted[threadIdx.x];
      int at = 0;
      for (int i = 0; i < count; ++i) at += int(s.unsorted[i] > mine);
      s.sorted[at] = mine;
      s.p[at] = odds.p(logit_of(key_in(mine)));
    }
    __syncthreads();
    return count;
  }
  __device__ Answer find(const Bracket& b, const Query& query, double above, double sum_above, Rank from) {
    const int listed = sort(b, from);
    if (threadIdx.x == 0) {
      double sum = sum_above;
      const int at = walk(s.p, listed, sum,
                          [&](int i, double so_far) { return query.reached(above + double(i + 1), so_far); });
      s.answer = {s.sorted[at], sum};
    }
    __syncthreads();
    return s.answer;
  }
  // The draw, where all that counts is few: as the contract says it.
  __device__ Answer draw(const Bracket& b, const Task& task, Rank from) {
    int kept = sort(b, from);
    if (threadIdx.x == 0) {
      const auto never = [](int, double) { return false; };
      if (task.top_k > 0) kept = int(min(int64_t(kept), task.top_k));
      double sum = 0;
      walk(s.p, kept, sum, never);
      if (task.top_p < 1) {
        const double enough = task.enough >= 0 ? task.enough : task.top_p * sum;
        sum = 0;
        kept = walk(s.p, kept, sum, [&](int, double so_far) { return so_far >= enough; }) + 1;
      }
      const double target = task.u * sum;
      sum = 0;
      const int at = walk(s.p, kept, sum, [&](int, double so_far) { return so_far > target; });
      s.answer = {s.sorted[at], sum};
    }
    __syncthreads();
    return s.answer;
  }
};

// The token that is drawn. `Tokens` divides brackets, and answers where few are left.
template <class Tokens> __device__ Answer answer(Tokens& tokens, const Task& task) {
  enum Seek { everything, top_k, kept, top_p, token };
  Shared& s = tokens.s;
  const Bracket whole{.low = task.least, .high = task.most + 1, .n = task.n};
  Rank from = task.from;
  Seek seek = everything;
  Query query{};
  Bracket b = whole;
  int inside = 0;      // tokens in it
  bool known = false;  // s.first is the table to look at
  double sum = 0, above = 0, sum_above = 0;
  for (int pass = 0;; ++pass) {
    const bool total = seek == everything || seek == kept;
    if (!total && !known && inside <= kFew) {
      if (seek != token && above + inside <= kFew) {  // and of what lies above
        Task rest = task;
        if (seek == top_p) rest.enough = query.target;
        const Rank last = b.equal ? rank_of(b.key, task.n - int64_t(b.low)) : Rank(b.low) << 32;
        return tokens.draw({.low = b.equal ? b.key : b.low, .high = whole.high, .n = task.n}, rest,
                           max(last, from));
      }
      const Answer found = tokens.find(b, query, above, sum_above, from);
      if (seek == token) return found;
      from = found.rank;
      if (seek == top_k) {
        seek = kept;
        b = {.low = key_in(from), .high = whole.high, .n = task.n};
      } else {
        seek = token;
        query = {.beyond = true, .target = task.u * found.sum};
        b = whole, known = true;
        above = sum_above = 0;
      }
      pass = -1;
      continue;
    }
    if (!known) {
      if (!b.equal && b.high - b.low == 1 && !total) b = {1, uint32_t(task.n) + 1, true, b.low, task.n};
      tokens.divide(b, from, pass % 2 == 0, total ? seek == kept || task.top_k == 0 : !query.by_count);
    }
    if (total) {
      int count = 0;
      sum = 0;
      for (int r = 0; r < kRegions; ++r) count += s.table.counts[r], sum += s.table.sums[r];
      const bool more = seek == everything && 0 < task.top_k && task.top_k < count;  // than top_k
      if (!more && count <= kFew) return tokens.draw(b, task, from);
      if (!more && seek == everything && task.top_k > 0) {  // all are kept: now their sum
        seek = kept, pass = -1;
        continue;
      }
      __syncthreads();
      if (threadIdx.x == 0) s.first = s.table;
      __syncthreads();
      known = true;
      above = sum_above = 0;
      if (more) {
        seek = top_k, query = {.by_count = true, .target = double(task.top_k)};
      } else if (task.top_p < 1) {
        seek = top_p, query = {.target = task.enough >= 0 ? task.enough : task.top_p * sum};
      } else {
        seek = token, query = {.beyond = true, .target = task.u * sum};
      }
    }
    // The region where it is reached; the last one that holds a token when it is not.
    const Table& table = known ? s.first : s.table;
    Bracket next = b;
    double next_above = above, next_sum = sum_above, passed = above, passed_sum = sum_above;
    bool done = false;
    const uint32_t least =
        b.equal ? (key_in(from) == b.key ? uint32_t(task.n - id_in(from)) : 0) : key_in(from);
    for (int r = 0; r < kRegions && !done; ++r) {
      const int count = table.counts[r];
      const uint32_t begin = r < kRegions - 1 ? table.cuts[r] : b.low,
                     end = r > 0 ? table.cuts[r - 1] : b.high;
      if (count == 0 || end <= least) continue;
      next.low = begin, next.high = end;
      next_above = passed, next_sum = passed_sum, inside = count;
      passed += count, passed_sum += table.sums[r];
      done = query.reached(passed, passed_sum);
    }
    b = next, above = next_above, sum_above = next_sum;
    known = false;
  }
}

// The token of a row whose largest logit is known; `tokens` look at all of it.
template <class Tokens>
__device__ Answer draw_token(Tokens& tokens, const SampleArgs& a, int64_t row, float most) {
  // A p below 2^-54 of the largest does not change a sum that the largest is in: such tokens are never drawn.
  constexpr uint32_t kLeastKey = 0x00800000;  // of the least number that is not -inf
  const uint32_t least = max(kLeastKey, key_of(float(double(most) - 38 * a.temperature)));
  const Task task{.least = least,
                  .most = key_of(most),
                  .from = Rank(least) << 32,
                  .n = a.logits.cols,
                  .top_k = a.top_k,
                  .top_p = a.top_p,
                  .u = uniform(a.seed, 0x53414D50, uint64_t(int64_t(a.positions[row])))};
  return answer(tokens, task);
}

}  // namespace cachalot::cuda::drawing
