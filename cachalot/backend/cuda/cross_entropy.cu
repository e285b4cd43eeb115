// Contract: backend/ops/cross_entropy.h. Rows are cut into parts of 8192 columns, 16 of them in V3. A part is
// visited once for its largest logit and its sum of exponentials; the last one of a row to come in adds up
// what all have found, in order. For the gradient it is visited once more, some rows later, while the
// second-level cache still holds it: memory is read once and written once. Exponentials float; a thread's sum
// float, their sum double. What the target's probability lacks to 1 is summed from the others, not
// subtracted, so that a confident model keeps its small gradients.
//
// Blocks take visits in order from a counter. A second visit waits for the first ones of its row, all of
// which running blocks have taken before: nobody waits for somebody who does not run.
#include "backend/cuda/convert.cuh"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/families.h"
#include "backend/cuda/hopper/cross_entropy_rows.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/reduce.cuh"
#include "backend/ops/check.h"

namespace cachalot::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kBlocks = 4;  // of a multiprocessor
constexpr int kFours = 8;                                           // of a thread, under way at once
constexpr int64_t kPart = 4 * kThreads * kFours;

struct Found {  // in a part
  float largest, unused;
  double others;  // sum of exp(logit - largest) without the target's
};
struct RowEnd {  // gradient = exp(logit - largest) factor, but for the target
  float largest, factor, at_target;
  int32_t real;
};

struct Args {
  Matrix<float> logits;
  const int32_t* targets;
  float* loss;
  bool gradient;
  double scale;
  int parts;
  int64_t lag;   // rows between the first visits and the second ones
  Found* found;  // [rows, parts]
  RowEnd* ends;  // [rows]
  void* out;     // of the gradient, in its format
  int64_t out_ld;
  uint32_t *visits, *arrived, *ready;  // a counter; [rows]: parts that have come in; whether its end is there
  Faults faults;
};

struct Visit {
  int64_t row;
  int part;
  bool second;
};
// The first `lag` rows' first visits, then rows of first and second visits in turn, then what is left of the
// second ones.
__device__ Visit visit_of(const Args& a, int64_t i) {
  const int64_t rows = a.logits.rows, parts = a.parts, lead = a.lag * parts;
  if (!a.gradient || i < lead) return {i / parts, int(i % parts), false};
  i -= lead;
  const int64_t pair = i / (2 * parts), within = i % (2 * parts);
  if (a.lag + pair < rows) {
    if (within < parts) return {a.lag + pair, int(within), false};
    return {pair, int(within - parts), true};
  }
  i -= (rows - a.lag) * 2 * parts;
  return {rows - a.lag + i / parts, int(i % parts), true};
}

// The fours of this thread; -inf beyond the row.
template <bool wide, bool last>
__device__ void load_fours(const float* x, int64_t at, int64_t n, float4 (&fours)[kFours]) {
#pragma unroll
  for (int k = 0; k < kFours; ++k) {
    const int64_t c = at + 4 * kThreads * k;
    fours[k] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    if constexpr (wide) {
      if (c < n) {
        const auto* from = reinterpret_cast<const float4*>(x + c);
        fours[k] = last ? __ldcs(from) : *from;
      }
    } else {
      if (c < n) fours[k].x = x[c];
      if (c + 1 < n) fours[k].y = x[c + 1];
      if (c + 2 < n) fours[k].z = x[c + 2];
      if (c + 3 < n) fours[k].w = x[c + 3];
    }
  }
}

// One warp: what the parts of a row have found, under one largest.
__device__ void end_row(const Args& a, int64_t row) {
  const int lane = int(threadIdx.x) % 32;
  const Found* found = a.found + row * a.parts;
  float largest = -INFINITY;
  for (int p = lane; p < a.parts; p += 32) largest = fmaxf(largest, __ldcg(&found[p].largest));
  largest = warp_max(largest);
  double others = 0;
  for (int p = lane; p < a.parts; p += 32) {
    const double its = __ldcg(&found[p].others);
    // A part that saw only -inf, or nothing, adds 0; NaN stays.
    others += its == 0 ? 0.0 : its * exp(double(__ldcg(&found[p].largest)) - double(largest));
  }
  others = warp_sum(others);
  if (lane > 0) return;
  const int64_t target = a.targets[row];
  const bool real = target >= 0 && a.faults.fine(FaultOf::cross_entropy, target, a.logits.cols);
  if (!real) {
    a.loss[row] = 0;
    a.ends[row] = {};
    return;
  }
  const double distance = double(largest) - double(a.logits.data[row * a.logits.ld + target]);
  const double all = exp(-distance) + others;
  a.loss[row] = float((distance == 0 ? log1p(others) : log(all)) + distance);
  a.ends[row] = {.largest = largest,
                 .factor = float(a.scale / all),
                 .at_target = float(-a.scale * (others / all)),
                 .real = 1};
}

__device__ inline uint32_t two_bf16(float low, float high) {
  uint32_t w;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(high), "f"(low));
  return w;
}

// G: format of the gradient.
template <class G, bool wide> __global__ void __launch_bounds__(kThreads, kBlocks)
    cross_entropy_kernel(const Args a) {
  __shared__ float warp_largest[kWarps];
  __shared__ double warp_others[kWarps];
  __shared__ uint32_t next;
  __shared__ bool ends;
  start();
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int64_t n = a.logits.cols, visits = a.logits.rows * a.parts * (a.gradient ? 2 : 1);
  if (threadIdx.x == 0) next = atomicAdd(a.visits, 1);
  __syncthreads();
  for (int64_t i = next; i < visits; i = next) {
    const Visit v = visit_of(a, i);
    float* x = a.logits.data + v.row * a.logits.ld;
    const int64_t at = v.part * kPart + 4 * int64_t(threadIdx.x);
    uint32_t taken = 0;
    if (threadIdx.x == 0) taken = atomicAdd(a.visits, 1);  // on its way meanwhile
    float4 fours[kFours];
    if (!v.second) {
      load_fours<wide, false>(x, at, n, fours);
      const int64_t target = a.targets[v.row];
      float largest = -INFINITY;
#pragma unroll
      for (int k = 0; k < kFours; ++k)
        largest = fmaxf(largest, fmaxf(fmaxf(fours[k].x, fours[k].y), fmaxf(fours[k].z, fours[k].w)));
      largest = warp_max(largest);
      const float shift = largest == -INFINITY ? 0.0f : largest;
      float sum = 0;
#pragma unroll
      for (int k = 0; k < kFours; ++k) {
        const int64_t off = target - (at + 4 * kThreads * k);
        const auto add = [&](float logit, int j) {
          const float e = expf(logit - shift);
          if (off != j) sum += e;
        };
        add(fours[k].x, 0), add(fours[k].y, 1), add(fours[k].z, 2), add(fours[k].w, 3);
      }
      const double others = warp_sum(double(sum));
      if (lane == 0) warp_largest[warp] = largest, warp_others[warp] = others;
      __syncthreads();  // also: all have read `next`
      if (warp == 0) {
        const float mine = lane < kWarps ? warp_largest[lane] : -INFINITY, most = warp_max(mine);
        const double its = lane < kWarps ? warp_others[lane] : 0.0;
        const double all = warp_sum(its == 0 ? 0.0 : its * exp(double(mine) - double(most)));
        if (lane == 0) {
          a.found[v.row * a.parts + v.part] = {.largest = most, .unused = 0, .others = all};
          __threadfence();
          ends = atomicAdd(a.arrived + v.row, 1) == uint32_t(a.parts) - 1;
          __threadfence();
        }
        __syncwarp();
        if (ends) {
          end_row(a, v.row);
          if (lane == 0) {
            __threadfence();
            atomicExch(a.ready + v.row, 1u);
          }
        }
      }
    } else {
      if (threadIdx.x == 0) {
        const volatile uint32_t* ready = a.ready + v.row;
        while (*ready == 0) __nanosleep(64);
        __threadfence();
      }
      __syncthreads();
      const float4 packed = __ldcg(reinterpret_cast<const float4*>(a.ends + v.row));
      const RowEnd end{packed.x, packed.y, packed.z, __float_as_int(packed.w)};
      if (end.real) load_fours<wide, true>(x, at, n, fours);
      const int64_t target = a.targets[v.row];
#pragma unroll
      for (int k = 0; k < kFours; ++k) {
        const int64_t c = at + 4 * kThreads * k, off = target - c;
        const auto scaled = [&](float logit, int j) {
          return !end.real ? 0.0f : off == j ? end.at_target : expf(logit - end.largest) * end.factor;
        };
        const float4 out{scaled(fours[k].x, 0), scaled(fours[k].y, 1), scaled(fours[k].z, 2),
                         scaled(fours[k].w, 3)};
        G* to = static_cast<G*>(a.out) + v.row * a.out_ld + c;
        if constexpr (!wide) {
          if (c < n) to[0] = G(out.x);
          if (c + 1 < n) to[1] = G(out.y);
          if (c + 2 < n) to[2] = G(out.z);
          if (c + 3 < n) to[3] = G(out.w);
        } else if constexpr (sizeof(G) == 2) {
          if (c < n)
            __stcs(reinterpret_cast<uint2*>(to), uint2{two_bf16(out.x, out.y), two_bf16(out.z, out.w)});
        } else {
          if (c < n) __stcs(reinterpret_cast<float4*>(to), out);
        }
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) next = taken;
    __syncthreads();
  }
}

}  // namespace

void CudaBackend::cross_entropy(const CrossEntropy& e) {
  check(e);
  require_no_f64("cross_entropy", {&e.logits, &e.dlogits});
  const Tensor gradient = e.dlogits ? e.dlogits : e.logits;
  const int64_t rows = e.logits.rows, parts = (e.logits.cols + kPart - 1) / kPart;
  if (rows == 0) return;
  select();
  if (kHopperProducts.runs_on(context_->major) && hopper::takes_rows(e) &&
      hopper::cross_entropy_workspace(e) <= kWorkspace)
    return hopper::cross_entropy_rows(queue_, context_->multiprocessors, workspace_, e, faults_);
  // Workspace: found [rows, parts] | ends [rows] | the counter and arrived [rows], ready [rows]
  const int64_t counters = 4 * (2 * rows + 1);
  CHECK(int64_t(sizeof(Found)) * rows * parts + int64_t(sizeof(RowEnd)) * rows + counters <= kWorkspace,
        "cross_entropy: too many rows at once on cuda");
  auto* found = static_cast<Found*>(workspace_);
  auto* ends = reinterpret_cast<RowEnd*>(found + rows * parts);
  auto* visits = reinterpret_cast<uint32_t*>(ends + rows);
  must(cudaMemsetAsync(visits, 0, size_t(counters), stream_), "cross_entropy");
  // As many first visits as run at once are ahead of the second ones, and those of some rows more: few enough
  // that the cache holds them.
  const int64_t blocks = std::min<int64_t>(kBlocks * context_->multiprocessors, rows * parts);
  const Args args{.logits = e.logits.matrix<float>(),
                  .targets = e.targets.vector<const int32_t>().data,
                  .loss = e.loss.vector<float>().data,
                  .gradient = e.gradient,
                  .scale = e.scale,
                  .parts = int(parts),
                  .lag = std::min(rows, (blocks + parts - 1) / parts + 4),
                  .found = found,
                  .ends = ends,
                  .out = gradient.data,
                  .out_ld = gradient.ld,
                  .visits = visits,
                  .arrived = visits + 1,
                  .ready = visits + 1 + rows,
                  .faults = faults_};
  with_act(gradient.dtype, [&](auto format) {
    with_width(are_wide({&e.logits, &gradient}), [&](auto wide) {
      launch(queue_, cross_entropy_kernel<decltype(format), wide.value>, unsigned(blocks), kThreads, 0, args);
    });
  });
  launched("cross_entropy");
}

}  // namespace cachalot::cuda
