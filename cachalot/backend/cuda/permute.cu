// Contract: backend/ops/permute.h. The plan is a counting sort: units of neighbouring choices are counted,
// the counts of all units summed expert by expert, and each unit places its own, in order. A unit is one
// warp's, so no atomic decides an order.
#include "backend/cuda/convert.cuh"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/limits.h"
#include "backend/cuda/reduce.cuh"
#include "backend/ops/check.h"

namespace cachalot::cuda {

namespace {

struct PlanArgs {
  const int32_t* indices;  // [choices]
  int32_t* row_of;         // [choices]
  int32_t* offsets;        // [experts + 1]
  int32_t* starts;         // [experts, units]: first how many, then where among its expert's they begin
  int32_t* totals;         // [experts]
  int64_t choices, per_unit;
  int experts, units;
  Faults faults;
};

// Shared memory of a warp: a number and a mask for every expert.
struct PlanMemory {
  int32_t* numbers;
  uint32_t* masks;
  __device__ PlanMemory(int32_t* memory, int warp, int experts)
      : numbers(memory + int64_t(warp) * 2 * experts), masks(reinterpret_cast<uint32_t*>(numbers + experts)) {
    for (int e = int(threadIdx.x) % 32; e < experts; e += 32) numbers[e] = 0, masks[e] = 0;
    __syncwarp();
  }
};

// Calls body(i, real, expert, earlier, all) for the choices of a unit, 32 at a time: `earlier` of these 32's
// lower lanes chose the same expert, and `all` of them. Lanes beyond the unit are not real; expert -1: none,
// or out of range.
template <class Body>
__device__ void for_unit(const PlanArgs& a, int64_t unit, uint32_t* masks, const Body& body) {
  const int lane = int(threadIdx.x) % 32;
  const int64_t begin = unit * a.per_unit, end = min(begin + a.per_unit, a.choices);
  int next = begin + lane < end ? a.indices[begin + lane] : 0;
  for (int64_t first = begin; first < end; first += 32) {
    const int64_t i = first + lane;
    int expert = next;
    if (i + 32 < end) next = a.indices[i + 32];  // on its way while this one is counted
    if (i >= end || !a.faults.fine(FaultOf::permute_plan, expert, a.experts)) expert = -1;
    if (expert >= 0) atomicOr(masks + expert, 1u << lane);
    __syncwarp();
    const uint32_t same = expert >= 0 ? masks[expert] : 0;
    __syncwarp();
    const int earlier = __popc(same & ((1u << lane) - 1));
    if (expert >= 0 && earlier == 0) masks[expert] = 0;
    body(i, i < end, expert, earlier, __popc(same));
    __syncwarp();
  }
}

// numbers[e]: how many of the unit chose e.
__device__ void count_unit(const PlanArgs& a, int64_t unit, const PlanMemory& m) {
  for_unit(a, unit, m.masks, [&](int64_t, bool, int expert, int earlier, int all) {
    if (expert >= 0 && earlier == 0) m.numbers[expert] += all;
  });
}

// numbers[e]: where the unit's next choice of e goes.
__device__ void place_unit(const PlanArgs& a, int64_t unit, const PlanMemory& m) {
  for_unit(a, unit, m.masks, [&](int64_t i, bool real, int expert, int earlier, int all) {
    const int at = expert >= 0 ? m.numbers[expert] : -1;
    __syncwarp();  // all have read
    if (real) a.row_of[i] = expert >= 0 ? at + earlier : -1;
    if (expert >= 0 && earlier == 0) m.numbers[expert] = at + all;
  });
}

// The inclusive sum over the lanes.
__device__ int32_t sum_up_to(int32_t x) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int32_t below = __shfl_up_sync(kAll, x, step);
    if (lane >= step) x += below;
  }
  return x;
}

// One warp: totals of the experts to where each begins; `last` is where the last one ends.
__device__ void sum_experts(int experts, const int32_t* totals, int32_t* begins, int32_t* last) {
  const int lane = int(threadIdx.x) % 32;
  int32_t before = 0;
  for (int first = 0; first < experts; first += 32) {
    const int e = first + lane;
    const int32_t mine = e < experts ? totals[e] : 0, sum = sum_up_to(mine);
    if (e < experts) begins[e] = before + sum - mine;
    before += __shfl_sync(kAll, sum, 31);
  }
  if (lane == 0) *last = before;
}

extern __shared__ int32_t plan_memory[];  // [warps of the block, 2, experts], then [experts + 1]

__global__ void count_kernel(PlanArgs a) {
  start();
  const int warp = int(threadIdx.x) / 32;
  const int64_t unit = int64_t(blockIdx.x) * (blockDim.x / 32) + warp;
  if (unit >= a.units) return;
  const PlanMemory m(plan_memory, warp, a.experts);
  count_unit(a, unit, m);
  for (int e = int(threadIdx.x) % 32; e < a.experts; e += 32)
    a.starts[int64_t(e) * a.units + unit] = m.numbers[e];
}

// A warp takes an expert: sums its units.
constexpr int kMostUnits = 512;
__global__ void sum_kernel(PlanArgs a) {
  start();
  const int lane = int(threadIdx.x) % 32, e = int(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32);
  if (e >= a.experts) return;
  int32_t* starts = a.starts + int64_t(e) * a.units;
  int32_t mine[kMostUnits / 32];
#pragma unroll
  for (int k = 0; k < kMostUnits / 32; ++k) mine[k] = 32 * k + lane < a.units ? starts[32 * k + lane] : 0;
  int32_t before = 0;
#pragma unroll
  for (int k = 0; k < kMostUnits / 32; ++k) {
    if (32 * k >= a.units) break;
    const int32_t sum = sum_up_to(mine[k]);
    if (32 * k + lane < a.units) starts[32 * k + lane] = before + sum - mine[k];
    before += __shfl_sync(kAll, sum, 31);
  }
  if (lane == 0) a.totals[e] = before;
}

__global__ void place_kernel(PlanArgs a) {
  start();
  const int warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32;
  const int64_t unit = int64_t(blockIdx.x) * warps + warp;
  int32_t* begins = plan_memory + int64_t(warps) * 2 * a.experts;  // [experts + 1]
  if (warp == 0) sum_experts(a.experts, a.totals, begins, begins + a.experts);
  __syncthreads();
  if (blockIdx.x == 0)
    for (int e = int(threadIdx.x); e <= a.experts; e += int(blockDim.x)) a.offsets[e] = begins[e];
  if (unit >= a.units) return;
  const PlanMemory m(plan_memory, warp, a.experts);
  for (int e = int(threadIdx.x) % 32; e < a.experts; e += 32)
    m.numbers[e] = begins[e] + a.starts[int64_t(e) * a.units + unit];
  __syncwarp();
  place_unit(a, unit, m);
}

// All three at once where one block is enough: a warp a unit, everything in shared memory.
__global__ void small_kernel(PlanArgs a) {
  start();
  const int warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32;
  int32_t* begins = plan_memory + int64_t(warps) * 2 * a.experts;  // [experts + 1]
  const PlanMemory m(plan_memory, warp, a.experts);
  count_unit(a, warp, m);  // nothing beyond the last unit
  __syncthreads();
  for (int e = int(threadIdx.x); e < a.experts; e += int(blockDim.x)) {
    int32_t before = 0;  // of this expert, in the units so far
    for (int w = 0; w < warps; ++w) {
      int32_t& number = plan_memory[2 * w * a.experts + e];
      const int32_t count = number;
      number = before;
      before += count;
    }
    begins[e] = before;
  }
  __syncthreads();
  if (warp == 0) sum_experts(a.experts, begins, begins, begins + a.experts);
  __syncthreads();
  for (int e = int(threadIdx.x); e <= a.experts; e += int(blockDim.x)) a.offsets[e] = begins[e];
  for (int e = int(threadIdx.x) % 32; e < a.experts; e += 32) m.numbers[e] += begins[e];
  __syncwarp();
  place_unit(a, warp, m);
}

// A decoding step's choices: so few that everybody looks at all of them.
constexpr int kFewChoices = 128, kFewThreads = 256;
__global__ void __launch_bounds__(kFewThreads) few_kernel(PlanArgs a) {
  __shared__ int4 fours[kFewChoices / 4];
  start();
  const int n = int(a.choices);
  if (threadIdx.x < kFewChoices) {
    int32_t expert = a.experts;  // behind all
    if (int(threadIdx.x) < n) {
      expert = a.indices[threadIdx.x];
      if (!a.faults.fine(FaultOf::permute_plan, expert, a.experts)) expert = -1;  // has no row
    }
    reinterpret_cast<int32_t*>(fours)[threadIdx.x] = expert;
  }
  __syncthreads();
  // counted(e, i): how many choices of a lower expert, or of the same one and before choice i, there are.
  const auto counted = [&](int e, int i) {
    int count = 0;
    const auto look = [&](int other, int at) {
      count += int(other >= 0 && (other < e || (other == e && at < i)));
    };
    for (int q = 0; 4 * q < n; ++q) {
      const int4 f = fours[q];
      look(f.x, 4 * q), look(f.y, 4 * q + 1), look(f.z, 4 * q + 2), look(f.w, 4 * q + 3);
    }
    return count;
  };
  for (int e = int(threadIdx.x); e <= a.experts; e += kFewThreads) a.offsets[e] = counted(e, 0);
  if (int(threadIdx.x) < n) {
    const int e = reinterpret_cast<const int32_t*>(fours)[threadIdx.x];
    a.row_of[threadIdx.x] = e >= 0 ? counted(e, int(threadIdx.x)) : -1;
  }
}

template <class T, bool wide>
__global__ void permute_kernel(Matrix<const T> x, Matrix<const int32_t> row_of, Matrix<T> y, Faults faults) {
  start();
  for_plane(x.rows, x.cols, [&](int64_t t, int64_t c) {
    const Packed<T> p = load<wide>(x.data + t * x.ld, c, x.cols);
    for (int64_t j = 0; j < row_of.cols; ++j) {
      const int64_t row = row_of.data[t * row_of.cols + j];
      if (faults.fine(FaultOf::permute, row, y.rows)) store<wide>(y.data + row * y.ld, c, y.cols, p);
    }
  });
}

// Codes with row tiles, and their scales; rows of y begin on 16 bytes. A thread takes 16 codes, and of a tile
// the first one its scale.
__global__ void permute_codes(const __grid_constant__ Tensor x, Matrix<const int32_t> row_of,
                              const __grid_constant__ Tensor y, bool wide, Faults faults) {
  constexpr int kCodes = 16;
  start();
  const int64_t across = (x.cols + kCodes - 1) / kCodes;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < x.rows * across;
       i += int64_t(gridDim.x) * blockDim.x) {
    const int64_t t = i / across, c = i % across * kCodes, count = min(int64_t(kCodes), x.cols - c);
    const uint8_t* from = static_cast<const uint8_t*>(x.data) + t * x.ld + c;
    alignas(16) uint8_t codes[kCodes];
    if (wide && count == kCodes) *reinterpret_cast<uint4*>(codes) = *reinterpret_cast<const uint4*>(from);
    else
      for (int k = 0; k < kCodes; ++k) codes[k] = k < count ? from[k] : 0;
    const bool first = c % kScaleBlock == 0;
    const float scale = first ? x.scale(t, c) : 0;
    for (int64_t j = 0; j < row_of.cols; ++j) {
      const int64_t row = row_of.data[t * row_of.cols + j];
      if (!faults.fine(FaultOf::permute, row, y.rows)) continue;
      uint8_t* to = static_cast<uint8_t*>(y.data) + row * y.ld + c;
      if (count == kCodes) *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(codes);
      else
        for (int k = 0; k < kCodes; ++k)
          if (k < count) to[k] = codes[k];
      if (first) y.scales[c / kScaleBlock * y.scale_ld + row] = scale;
    }
  }
}

template <class T> struct UnpermuteArgs {
  Matrix<const T> x, residual, shared;
  Matrix<T> y;
  const int32_t* row_of;  // [rows of y, choices]
  const float* weights;   // the same, or none
  int choices;
  Faults faults;
};

template <class T, bool wide> __global__ void unpermute_kernel(UnpermuteArgs<T> a) {
  start();
  constexpr int kAtOnce = 4;  // rows under way at once
  for_plane(a.y.rows, a.y.cols, [&](int64_t t, int64_t c) {
    Eight sum = {};
    if (a.residual.data) sum = load_eight<wide>(a.residual.data + t * a.residual.ld, c, a.y.cols);
    if (a.shared.data) {
      const Eight e = load_eight<wide>(a.shared.data + t * a.shared.ld, c, a.y.cols);
#pragma unroll
      for (int i = 0; i < kEight; ++i) sum.v[i] += e.v[i];
    }
    for (int first = 0; first < a.choices; first += kAtOnce) {
      Packed<T> rows[kAtOnce];
      float weights[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        rows[k] = {}, weights[k] = 0;
        if (first + k >= a.choices) continue;
        const int64_t choice = t * a.choices + first + k, row = a.row_of[choice];
        if (!a.faults.fine(FaultOf::unpermute, row, a.x.rows)) continue;
        rows[k] = load<wide>(a.x.data + row * a.x.ld, c, a.y.cols);
        weights[k] = a.weights ? a.weights[choice] : 1.0f;
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (first + k >= a.choices) break;
        const Eight e = unpack(rows[k]);
#pragma unroll
        for (int i = 0; i < kEight; ++i) sum.v[i] += weights[k] * e.v[i];
      }
    }
    store_eight<wide>(a.y.data + t * a.y.ld, c, a.y.cols, sum);
  });
}

template <class T> struct UnpermuteBackwardArgs {
  Matrix<const T> dy, x;
  Matrix<T> dx;
  const int32_t* row_of;
  const float* weights;
  float* dweights;
  int choices;
  Faults faults;
};

constexpr int kParts = 4;  // eights of dy in the registers of a thread
constexpr int kMostThreads = 512;

// A block takes a token: dy stays in registers while its rows of x pass by. Each warp keeps its part of each
// dot product; they meet at the end.
template <class T, bool wide> __global__ void __launch_bounds__(kMostThreads)
    unpermute_backward_kernel(UnpermuteBackwardArgs<T> a) {
  start();
  extern __shared__ float dots[];  // [choices, warps]
  const int64_t t = blockIdx.x, d = a.dy.cols;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32;
  const int64_t across = int64_t(kEight) * kParts * blockDim.x;
  for (int64_t segment = 0; segment < d || segment == 0; segment += across) {
    const auto begin_of = [&](int part) {
      return segment + kEight * (int64_t(part) * blockDim.x + threadIdx.x);
    };
    Packed<T> dy[kParts];
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      dy[i] = {};
      if (begin_of(i) < d) dy[i] = load<wide>(a.dy.data + t * a.dy.ld, begin_of(i), d);
    }
    for (int j = 0; j < a.choices; ++j) {
      const int64_t row = a.row_of[t * a.choices + j];
      float dot = 0;
      if (a.faults.fine(FaultOf::unpermute_backward, row, a.x.rows)) {
        const float weight = a.weights[t * a.choices + j];
        Packed<T> x[kParts];
#pragma unroll
        for (int i = 0; i < kParts; ++i) {
          x[i] = {};
          if (begin_of(i) < d) x[i] = load<wide>(a.x.data + row * a.x.ld, begin_of(i), d);
        }
#pragma unroll
        for (int i = 0; i < kParts; ++i) {
          if (begin_of(i) >= d) break;
          const Eight e = unpack(x[i]), g = unpack(dy[i]);
          Eight out;
#pragma unroll
          for (int k = 0; k < kEight; ++k) {
            dot += e.v[k] * g.v[k];
            out.v[k] = weight * g.v[k];
          }
          store_eight<wide>(a.dx.data + row * a.dx.ld, begin_of(i), d, out);
        }
      }
      dot = warp_sum(dot);
      if (lane == 0) dots[j * warps + warp] = segment == 0 ? dot : dots[j * warps + warp] + dot;
    }
  }
  __syncthreads();
  for (int j = int(threadIdx.x); j < a.choices; j += int(blockDim.x)) {
    float sum = 0;
    for (int w = 0; w < warps; ++w) sum += dots[j * warps + w];
    a.dweights[t * a.choices + j] = sum;
  }
}

constexpr int64_t kSharedBytes = 48 << 10;  // what every card gives without being asked

}  // namespace

void CudaBackend::permute_plan(const PermutePlan& p) {
  check(p);
  const auto shared = [&](int64_t warps) { return 4 * ((2 * warps + 1) * p.experts + 1); };  // bytes
  require_at_most("permute_plan", p.experts, (kSharedBytes / 4 - 1) / 3, "experts");
  select();
  // One block up to 256 choices a warp; else units of a multiple of 32 choices, at most 512 of them.
  const int64_t choices = p.indices.size();
  int64_t warps = 16;
  while (shared(warps) > kSharedBytes) warps /= 2;
  const bool small = choices <= 256 * warps;
  const int64_t per_unit = small ? ((choices + warps - 1) / warps + 31) / 32 * 32
                                 : std::max<int64_t>(128, (choices / kMostUnits + 32) / 32 * 32);
  const int64_t units = choices == 0 ? 0 : (choices + per_unit - 1) / per_unit;
  CHECK((units + 1) * p.experts * 4 <= kWorkspace);
  auto* starts = static_cast<int32_t*>(workspace_);
  const PlanArgs args{.indices = p.indices.vector<const int32_t>().data,
                      .row_of = p.row_of.vector<int32_t>().data,
                      .offsets = p.offsets.vector<int32_t>().data,
                      .starts = starts,
                      .totals = starts + units * p.experts,
                      .choices = choices,
                      .per_unit = per_unit,
                      .experts = int(p.experts),
                      .units = int(units),
                      .faults = faults_};
  if (choices <= kFewChoices) {
    launch(queue_, few_kernel, 1, kFewThreads, 0, args);
  } else if (small) {
    launch(queue_, small_kernel, 1, unsigned(32 * warps), size_t(shared(warps)), args);
  } else {
    warps = std::min<int64_t>(4, warps);
    const auto blocks = unsigned((units + warps - 1) / warps);
    launch(queue_, count_kernel, blocks, unsigned(32 * warps), size_t(shared(warps)), args);
    launch(queue_, sum_kernel, unsigned((p.experts + 3) / 4), 128, 0, args);
    launch(queue_, place_kernel, blocks, unsigned(32 * warps), size_t(shared(warps)), args);
  }
  launched("permute_plan");
}

void CudaBackend::permute(const Permute& p) {
  check(p);
  require_no_f64("permute", {&p.x, &p.y});
  if (p.y.size() == 0) return;
  select();
  if (p.x.dtype == DType::e4m3) {
    const bool on_16_bytes =
        reinterpret_cast<uintptr_t>(p.x.data) % 16 == 0 && (p.x.rows <= 1 || p.x.ld % 16 == 0);
    const int64_t blocks = (p.x.rows * ((p.x.cols + 15) / 16) + 255) / 256;
    launch(queue_, permute_codes, unsigned(std::min<int64_t>(blocks, 1 << 20)), 256, 0, p.x,
           p.row_of.matrix<const int32_t>(), p.y, on_16_bytes, faults_);
    return launched("permute");
  }
  const Plane grid = plane(p.x.rows, p.x.cols);
  with_act(p.x.dtype, [&](auto act) {
    using T = decltype(act);
    with_width(are_wide({&p.x, &p.y}), [&](auto wide) {
      launch(queue_, permute_kernel<T, wide.value>, grid.grid, grid.block, 0, p.x.matrix<const T>(),
             p.row_of.matrix<const int32_t>(), p.y.matrix<T>(), faults_);
    });
  });
  launched("permute");
}

void CudaBackend::unpermute(const Unpermute& p) {
  check(p);
  require_no_f64("unpermute", {&p.x, &p.y});
  if (p.y.size() == 0) return;
  select();
  const Plane grid = plane(p.y.rows, p.y.cols);
  with_act(p.y.dtype, [&](auto act) {
    using T = decltype(act);
    const UnpermuteArgs<T> args{.x = p.x.matrix<const T>(),
                                .residual = p.residual ? p.residual.matrix<const T>() : Matrix<const T>{},
                                .shared = p.shared ? p.shared.matrix<const T>() : Matrix<const T>{},
                                .y = p.y.matrix<T>(),
                                .row_of = p.row_of.vector<const int32_t>().data,
                                .weights = p.weights ? p.weights.vector<const float>().data : nullptr,
                                .choices = int(p.row_of.cols),
                                .faults = faults_};
    with_width(are_wide({&p.x, &p.y, &p.residual, &p.shared}), [&](auto wide) {
      launch(queue_, unpermute_kernel<T, wide.value>, grid.grid, grid.block, 0, args);
    });
  });
  launched("unpermute");
}

void CudaBackend::unpermute_backward(const UnpermuteBackward& p) {
  check(p);
  require_no_f64("unpermute_backward", {&p.x, &p.dx});
  const int64_t rows = p.dy.rows, d = p.dy.cols, choices = p.row_of.cols;
  if (rows == 0 || choices == 0) return;
  select();
  const int64_t wanted = ((eights(d) + kParts - 1) / kParts + 31) / 32 * 32;
  const int64_t threads = std::min<int64_t>(std::max<int64_t>(wanted, 32), kMostThreads);
  const int64_t bytes = 4 * choices * threads / 32;
  require_at_most("unpermute_backward", choices, kSharedBytes / 4 / (threads / 32), "experts of a token");
  with_act(p.dy.dtype, [&](auto act) {
    using T = decltype(act);
    const UnpermuteBackwardArgs<T> args{.dy = p.dy.matrix<const T>(),
                                        .x = p.x.matrix<const T>(),
                                        .dx = p.dx.matrix<T>(),
                                        .row_of = p.row_of.vector<const int32_t>().data,
                                        .weights = p.weights.vector<const float>().data,
                                        .dweights = p.dweights.vector<float>().data,
                                        .choices = int(choices),
                                        .faults = faults_};
    with_width(are_wide({&p.dy, &p.x, &p.dx}), [&](auto wide) {
      launch(queue_, unpermute_backward_kernel<T, wide.value>, unsigned(rows), unsigned(threads),
             size_t(bytes), args);
    });
  });
  launched("unpermute_backward");
}

}  // namespace cachalot::cuda
