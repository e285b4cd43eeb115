// Contract: backend/ops/sample.h. A block takes a row; nothing is sorted but what it comes down to.
//
// Tokens stand in one order: larger logit first, then lower id. What is asked is always the same: which token
// is the first one at which the running count (top_k) or the running sum of p (top_p, the draw) reaches a
// target? The answer is bracketed by logits, a sixteenth of the bracket after the other, until at most kList
// tokens are left; those are sorted and walked. When all that is kept fits the list, top_p and the draw walk
// it as the contract says it, one addition after the other; else the sums of what lies above the bracket are
// taken in another, fixed order of additions.
#include <cmath>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/reduce.cuh"
#include "backend/ops/check.h"

namespace cachalot::cuda {

namespace {

constexpr int kThreads = 512;
constexpr int kList = 1024;
constexpr int kRegions = 16;  // of a bracket; each warp adds up one of them
static_assert(kRegions == kThreads / 32);

using Rank = unsigned long long;  // the larger, the earlier: key of the logit, then ~id

// Keys order like numbers, -0 equal to 0; 0 for what is never drawn: NaN and -inf.
__device__ uint32_t key_of(float x) {
  if (!(x > -INFINITY)) return 0;
  const uint32_t u = __float_as_uint(x == 0 ? 0.0f : x);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}
__device__ float logit_of(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key);
}
__device__ Rank rank_of(uint32_t key, int64_t id) { return Rank(key) << 32 | uint32_t(~uint32_t(id)); }
__device__ int32_t id_of(Rank rank) { return int32_t(~uint32_t(rank)); }

// base/rng.h: random_uniform(), on the device.
__device__ double uniform(uint64_t seed, uint64_t stream, uint64_t index) {
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
__device__ double exp_down(double x, const double* powers) {
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

struct Row {
  const float* x;
  int64_t n;
  double inverse_temperature;
  float most;            // the largest logit
  const double* powers;  // 2^(j/32)

  // Without its denominator: the largest is 1, also when its logit is +inf.
  __device__ double p(float logit) const {
    return logit == most ? 1.0 : exp_down((double(logit) - double(most)) * inverse_temperature, powers);
  }
};

// body(logit, id) for this thread's logits, eight under way at once; always in the same order.
template <class Body> __device__ void for_row(const Row& row, const Body& body) {
  constexpr int kAtOnce = 8;
  for (int64_t base = threadIdx.x; base < row.n; base += kAtOnce * kThreads) {
    float x[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int64_t i = base + k * kThreads;
      x[k] = i < row.n ? row.x[i] : -INFINITY;
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) body(x[k], base + k * kThreads);  // -inf is no token
  }
}

// What each thread found in each region: nobody else touches it, so the sums have one order.
struct Regions {
  double sums[kRegions][kThreads];
  int counts[kRegions][kThreads];
};

// A bracket of keys in regions, the largest first: region r lies between cuts[r] and cuts[r-1].
struct Table {
  uint32_t cuts[kRegions - 1];
  double sums[kRegions];
  int counts[kRegions];
};

struct Shared {
  Rank list[kList];
  double p[kList];
  Table table, first;  // of the bracket at hand; of everything
  Rank ranks[kThreads / 32];
  int counts[kThreads / 32];
  int listed;
  Rank found;
  double found_sum;
  int found_count;
};

// The largest over the block; every thread gets it.
__device__ Rank block_max(Rank x, Shared& s) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const Rank other = __shfl_xor_sync(kAll, x, step);
    if (other > x) x = other;
  }
  __syncthreads();  // what was there has been read
  if (threadIdx.x % 32 == 0) s.ranks[threadIdx.x / 32] = x;
  __syncthreads();
  for (int w = 0; w < kThreads / 32; ++w)
    if (s.ranks[w] > x) x = s.ranks[w];
  return x;
}

// Tokens whose key is in [low, high) and whose rank is at least `from`, sorted into s.list, and their p.
// At most kList of them; returns how many.
__device__ int sort_list(const Row& row, uint32_t low, uint32_t high, Rank from, Shared& s) {
  __syncthreads();
  if (threadIdx.x == 0) s.listed = 0;
  for (int i = int(threadIdx.x); i < kList; i += kThreads) s.list[i] = 0;  // behind every token
  __syncthreads();
  const float bottom = logit_of(low), top = logit_of(high - 1);
  for_row(row, [&](float x, int64_t i) {
    if (!(x >= bottom && x <= top)) return;  // most are done here; the keys decide
    const uint32_t key = key_of(x);
    if (key < low || key >= high || rank_of(key, i) < from) return;
    const int at = atomicAdd(&s.listed, 1);  // in any order: they are sorted next, and no two are equal
    if (at < kList) s.list[at] = rank_of(key, i);
  });
  __syncthreads();
  const int count = min(s.listed, kList);
  int width = 32;
  while (width < count) width *= 2;
  for (int size = 2; size <= width; size *= 2)  // bitonic, descending
    for (int stride = size / 2; stride > 0; stride /= 2) {
      for (int i = int(threadIdx.x); i < width; i += kThreads) {
        const int other = i ^ stride;
        if (other > i) {
          const Rank a = s.list[i], b = s.list[other];
          if ((i & size) == 0 ? a < b : a > b) s.list[i] = b, s.list[other] = a;
        }
      }
      __syncthreads();
    }
  for (int i = int(threadIdx.x); i < count; i += kThreads)
    s.p[i] = row.p(logit_of(uint32_t(s.list[i] >> 32)));
  __syncthreads();
  return count;
}

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
  Rank rank = 0;   // of the token; the last one when the target is never reached
  double sum = 0;  // of p up to and with it; only for sums
  int64_t count = 0;
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

// The m-th (from 1) token with this key and a rank of at least `from`, in the order of ids.
__device__ Rank nth_equal(const Row& row, uint32_t key, Rank from, int64_t m, Shared& s) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  int64_t before = 0;
  for (int64_t window = 0; window < row.n; window += kThreads) {
    const int64_t i = window + threadIdx.x;
    const bool mine = i < row.n && key_of(row.x[i]) == key && rank_of(key, i) >= from;
    const unsigned votes = __ballot_sync(kAll, mine);
    __syncthreads();
    if (lane == 0) s.counts[warp] = __popc(votes);
    __syncthreads();
    int below = 0, all = 0;
    for (int w = 0; w < kThreads / 32; ++w) {
      below += w < warp ? s.counts[w] : 0;
      all += s.counts[w];
    }
    if (mine && before + below + __popc(votes & ((1u << lane) - 1)) + 1 == m) s.found = rank_of(key, i);
    before += all;
    if (before >= m) break;
  }
  __syncthreads();
  return s.found;
}

// How many tokens of [low, high) and of a rank of at least `from` each region holds, and the sum of their p.
// Cut at equal steps of the logits or of the keys.
__device__ void divide(const Row& row, uint32_t low, uint32_t high, Rank from, bool by_value, bool with_sums,
                       Regions& regions, Table& table) {
  const float top = logit_of(high - 1), bottom = logit_of(low);
  by_value = by_value && isfinite(top) && isfinite(bottom) && isfinite(top - bottom);
  __syncthreads();  // the table before has been read
  if (threadIdx.x == 0) {
    uint32_t above = high - 1;
    for (int r = 0; r < kRegions - 1; ++r) {
      const float share = float(r + 1) / kRegions;
      const uint32_t wanted = by_value ? key_of(top - (top - bottom) * share)
                                       : high - uint32_t(double(high - low) * double(share));
      table.cuts[r] = above = min(max(wanted, low + 1), above);
    }
  }
#pragma unroll
  for (int r = 0; r < kRegions; ++r) regions.sums[r][threadIdx.x] = 0, regions.counts[r][threadIdx.x] = 0;
  __syncthreads();
  for_row(row, [&](float x, int64_t i) {
    if (!(x >= bottom && x <= top)) return;  // most are done here; the keys decide
    const uint32_t key = key_of(x);
    if (key < low || key >= high || rank_of(key, i) < from) return;
    int region = 0;  // how many cuts lie above the key
#pragma unroll
    for (int half = kRegions / 2; half > 0; half /= 2)
      if (key < table.cuts[region + half - 1]) region += half;
    ++regions.counts[region][threadIdx.x];
    if (with_sums) regions.sums[region][threadIdx.x] += row.p(x);
  });
  __syncthreads();
  const int r = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  double sum = 0;
  int all = 0;
  for (int t = lane; t < kThreads; t += 32) sum += regions.sums[r][t], all += regions.counts[r][t];
  sum = warp_sum(sum);
  all = warp_sum(all);
  if (lane == 0) table.sums[r] = sum, table.counts[r] = all;
  __syncthreads();
}

// The first token, among `count` > 0 of a rank of at least `from`, at which the query is reached. `most` is the
// largest key. With `least`, s.first is of all tokens from that key on.
__device__ Answer find(const Row& row, const Query& query, uint32_t most, uint32_t least, Rank from,
                       int64_t count, Shared& s, Regions& regions) {
  uint32_t low = least ? least : uint32_t(from >> 32), high = most + 1;
  double above = 0, sum_above = 0, inside = double(count);  // tokens before the bracket; in it
  for (int pass = 0; inside > kList && high - low > 1; ++pass) {
    // Steps of the logits and of the keys in turn: an outlier spoils only the first kind.
    const bool known = pass == 0 && least;
    if (!known) divide(row, low, high, from, pass % 2 == 0, !query.by_count, regions, s.table);
    const Table& table = known ? s.first : s.table;
    // The region where it is reached; the last one that holds a token when it is not.
    uint32_t next_low = low, next_high = high;
    double next_above = above, next_sum = sum_above, passed = above, passed_sum = sum_above;
    bool done = false;
    for (int r = 0; r < kRegions && !done; ++r) {
      const double tokens = table.counts[r];
      const uint32_t begin = r < kRegions - 1 ? table.cuts[r] : low, end = r > 0 ? table.cuts[r - 1] : high;
      if (tokens == 0 || end <= uint32_t(from >> 32)) continue;
      next_low = begin, next_high = end;
      next_above = passed, next_sum = passed_sum, inside = tokens;
      passed += tokens, passed_sum += table.sums[r];
      done = query.reached(passed, passed_sum);
    }
    low = next_low, high = next_high, above = next_above, sum_above = next_sum;
  }

  if (inside > kList) {  // one logit many times over
    const double p = query.by_count ? 0.0 : row.p(logit_of(low));
    const auto reached = [&](double m) { return query.reached(above + m, sum_above + m * p); };
    double m = query.by_count ? query.target - above : p > 0 ? floor((query.target - sum_above) / p) : inside;
    m = fmin(fmax(m, 1.0), inside);
    while (m > 1 && reached(m - 1)) --m;
    while (m < inside && !reached(m)) ++m;
    return {nth_equal(row, low, from, int64_t(m), s), sum_above + m * p, int64_t(above + m)};
  }
  const int listed = sort_list(row, low, high, from, s);
  if (threadIdx.x == 0) {
    double sum = sum_above;
    const int at = walk(s.p, listed, sum,
                        [&](int i, double so_far) { return query.reached(above + double(i + 1), so_far); });
    s.found = s.list[at];
    s.found_sum = sum;
    s.found_count = at + 1;
  }
  __syncthreads();
  return {s.found, s.found_sum, int64_t(above) + s.found_count};
}

struct SampleArgs {
  Matrix<const float> logits;
  const int32_t* positions;
  int32_t* tokens;
  double temperature, top_p;
  int64_t top_k;
  uint64_t seed;
};

// Block (part of a row, row). The last block of a row to come in looks at what all have found; which one that
// is does not matter, since a largest rank needs no order.
constexpr int kGreedyThreads = 256, kGreedyFours = 8;  // a thread, under way at once
constexpr int64_t kGreedyStep = 4 * kGreedyThreads * kGreedyFours;

__global__ void __launch_bounds__(kGreedyThreads)
    greedy_kernel(SampleArgs a, int64_t part, Rank* found, uint32_t* arrived) {
  __shared__ Rank ranks[kGreedyThreads / 32];
  __shared__ bool last;
  start();
  const int64_t t = blockIdx.y, n = a.logits.cols, end = min(n, (blockIdx.x + 1) * part);
  const float* x = a.logits.data + t * a.logits.ld;
  Rank best = 0;
  const auto look = [&](float logit, int64_t i) {
    const uint32_t key = key_of(logit);
    if (key > uint32_t(best >> 32)) best = rank_of(key, i);  // its own numbers come in the order of ids
  };
  const bool wide = reinterpret_cast<uintptr_t>(x) % 16 == 0 && n % 4 == 0;
  for (int64_t first = blockIdx.x * part + 4 * int64_t(threadIdx.x); first < end; first += kGreedyStep) {
    float4 fours[kGreedyFours];
#pragma unroll
    for (int k = 0; k < kGreedyFours; ++k) {
      const int64_t i = first + 4 * kGreedyThreads * k;
      fours[k] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
      if (wide) {
        if (i < end) fours[k] = __ldcs(reinterpret_cast<const float4*>(x + i));
      } else {
        if (i < end) fours[k].x = x[i];
        if (i + 1 < end) fours[k].y = x[i + 1];
        if (i + 2 < end) fours[k].z = x[i + 2];
        if (i + 3 < end) fours[k].w = x[i + 3];
      }
    }
#pragma unroll
    for (int k = 0; k < kGreedyFours; ++k) {
      const int64_t i = first + 4 * kGreedyThreads * k;
      look(fours[k].x, i), look(fours[k].y, i + 1), look(fours[k].z, i + 2), look(fours[k].w, i + 3);
    }
  }
  const auto block_best = [&] {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) best = max(best, __shfl_xor_sync(kAll, best, step));
    if (threadIdx.x % 32 == 0) ranks[threadIdx.x / 32] = best;
    __syncthreads();
    best = ranks[0];
    for (int w = 1; w < kGreedyThreads / 32; ++w) best = max(best, ranks[w]);
  };
  block_best();
  if (gridDim.x > 1) {
    if (threadIdx.x == 0) {
      found[t * gridDim.x + blockIdx.x] = best;
      __threadfence();
      last = atomicInc(arrived + t, gridDim.x - 1) == gridDim.x - 1;  // back to zero with the last one
      __threadfence();
    }
    __syncthreads();
    if (!last) return;
    best = 0;
    for (unsigned i = threadIdx.x; i < gridDim.x; i += kGreedyThreads)
      best = max(best, __ldcg(found + t * gridDim.x + i));
    __syncthreads();
    block_best();
  }
  if (threadIdx.x == 0) a.tokens[t] = best == 0 ? 0 : id_of(best);
}

__global__ void __launch_bounds__(kThreads) draw_kernel(SampleArgs a) {
  __shared__ Shared s;
  extern __shared__ __align__(16) uint8_t memory[];
  Regions& regions = *reinterpret_cast<Regions*>(memory);
  start();
  const int64_t t = blockIdx.x;
  __shared__ double powers[32];
  if (threadIdx.x < 32) powers[threadIdx.x] = exp2(double(threadIdx.x) / 32);  // seen after the first barrier
  Row row{a.logits.data + t * a.logits.ld, a.logits.cols, 1 / a.temperature, 0, powers};
  float mine_most = -INFINITY;
  for_row(row, [&](float x, int64_t) { mine_most = fmaxf(mine_most, x); });  // passes over NaN
  const uint32_t most = uint32_t(block_max(key_of(mine_most), s));
  if (most == 0) {
    if (threadIdx.x == 0) a.tokens[t] = 0;
    return;
  }
  row.most = logit_of(most);
  // A p below 2^-54 of the largest does not change a sum that the largest is in: such tokens are never drawn.
  constexpr uint32_t kLeastKey = 0x00800000;  // of the least number that is not -inf
  const uint32_t least = max(kLeastKey, key_of(float(double(row.most) - 38 * a.temperature)));

  // Kept are `count` tokens, those of a rank of at least `from`; `sum` is of their p where they are many.
  Rank from = Rank(least) << 32;
  int64_t count = 0;
  double sum = 0;
  bool cut = a.top_p >= 1;
  divide(row, least, most + 1, from, true, a.top_k == 0, regions, s.first);
  for (int r = 0; r < kRegions; ++r) count += s.first.counts[r], sum += s.first.sums[r];
  uint32_t known = least;  // s.first can be used
  if (0 < a.top_k && a.top_k < count) {
    from =
        find(row, {.by_count = true, .target = double(a.top_k)}, most, known, from, count, s, regions).rank;
    count = a.top_k;
  }
  if (count > kList) {
    if (a.top_k > 0) {
      known = 0;
      divide(row, uint32_t(from >> 32), most + 1, from, true, true, regions, s.table);
      sum = 0;
      for (int r = 0; r < kRegions; ++r) sum += s.table.sums[r];
    }
    if (!cut) {
      const Answer last = find(row, {.target = a.top_p * sum}, most, known, from, count, s, regions);
      from = last.rank, count = last.count, sum = last.sum;
      cut = true;
    }
  }
  const double u = uniform(a.seed, kSampleStream, uint64_t(int64_t(a.positions[t])));
  if (count > kList) {
    const Answer drawn = find(row, {.beyond = true, .target = u * sum}, most, known, from, count, s, regions);
    if (threadIdx.x == 0) a.tokens[t] = id_of(drawn.rank);
    return;
  }
  int kept = sort_list(row, least, most + 1, from, s);
  if (threadIdx.x > 0) return;
  const auto never = [](int, double) { return false; };
  sum = 0;
  walk(s.p, kept, sum, never);
  if (!cut) {
    const double enough = a.top_p * sum;
    sum = 0;
    kept = walk(s.p, kept, sum, [&](int, double so_far) { return so_far >= enough; }) + 1;
  }
  const double target = u * sum;
  sum = 0;
  a.tokens[t] = id_of(s.list[walk(s.p, kept, sum, [&](int, double so_far) { return so_far > target; })]);
}

}  // namespace

void CudaBackend::sample(const Sample& q) {
  check(q);
  require_no_f64("sample", {&q.logits});
  if (q.logits.rows == 0) return;
  select();
  const SampleArgs args{.logits = q.logits.matrix<const float>(),
                        .positions = q.positions.vector<const int32_t>().data,
                        .tokens = q.tokens.vector<int32_t>().data,
                        .temperature = q.temperature,
                        .top_p = q.top_p,
                        .top_k = q.top_k,
                        .seed = q.seed};
  if (q.temperature == 0) {
    for (int64_t first = 0; first < q.logits.rows; first += kCounters) {
      SampleArgs some = args;
      const int64_t rows = std::min(kCounters, q.logits.rows - first);
      some.logits.data += first * some.logits.ld;
      some.tokens += first;
      // Parts of a whole number of steps; of many rows few, so that all blocks run at once.
      const int64_t steps = (q.logits.cols + kGreedyStep - 1) / kGreedyStep;
      const int64_t wanted = std::max<int64_t>(1, 4 * context_->multiprocessors / rows);
      const int64_t part = (steps + wanted - 1) / wanted * kGreedyStep;
      const int64_t parts = (q.logits.cols + part - 1) / part;
      CHECK(parts * rows * int64_t(sizeof(Rank)) <= kWorkspace, "sample: too many columns on cuda");
      launch(queue_, greedy_kernel, dim3(unsigned(parts), unsigned(rows)), kGreedyThreads, 0, some, part,
             static_cast<Rank*>(workspace_), counters_);
    }
  } else {
    must(cudaFuncSetAttribute(draw_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(sizeof(Regions))),
         "sample");
    launch(queue_, draw_kernel, unsigned(q.logits.rows), kThreads, sizeof(Regions), args);
  }
  launched("sample");
}

}  // namespace cachalot::cuda
