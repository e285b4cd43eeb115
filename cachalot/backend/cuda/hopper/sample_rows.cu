// Eight blocks look at a row, 32 logits a thread: it comes from memory once, then from the second-level
// cache, and dividing a bracket (sample.cuh) costs one exchange. Each block tells all others what its regions
// hold, and each adds that up in the order of the blocks, so that all know the same bits. When few enough
// tokens are left, they are sent to the first block, which divides, sorts and walks them alone.
#include "backend/cuda/hopper/sample_rows.h"

#include <algorithm>

#include "backend/cuda/hopper/barrier.cuh"
#include "backend/cuda/hopper/launched.h"
#include "backend/cuda/sample.cuh"

namespace cachalot::cuda::hopper {

namespace {

using namespace drawing;

constexpr int kBlocks = 8, kFours = 8;
constexpr int64_t kSlice = 4 * kThreads * kFours;  // logits of a block
constexpr int kSent = 2048;                        // tokens that the first block takes

struct alignas(16) Mail {  // what a block has found in a region; or the largest logit; or half an answer
  double sum;
  int count, unused;
};
__device__ void post(const Mail& mail, uint32_t to, uint32_t barrier) {
  push(to, barrier, __int_as_float(__double2loint(mail.sum)), __int_as_float(__double2hiint(mail.sum)),
       __int_as_float(mail.count), 0.0f);
}

struct ClusterShared {
  Regions<uint8_t> regions;
  Rank sent[kSent];
  Mail mail[2][kBlocks][kRegions];
  Barrier told[2], arrived;
  Shared s;
  float largest[kThreads / 32];
  int hits;
};

// The tokens of a row, of which this thread looks at 32.
struct InCluster {
  static constexpr int kAtMost = kSent;
  const float* logits;  // of the slice
  int n;
  const Odds& odds;
  ClusterShared& c;
  Shared& s;
  int rank;
  int64_t begin;  // of the slice
  int turn = 1;   // which of the two mailboxes is next, and the parity of its phase
  uint32_t parity = 0, parity_arrived = 0;

  template <class Body> __device__ void each(const Body& body) const {
    constexpr int kAtOnce = 4;
#pragma unroll 1
    for (int first = 4 * int(threadIdx.x); first < n; first += 4 * kThreads * kAtOnce) {
      float4 x[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) x[k] = four(first + 4 * kThreads * k);
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int64_t id = begin + first + 4 * kThreads * k;
        body(x[k].x, id), body(x[k].y, id + 1), body(x[k].z, id + 2), body(x[k].w, id + 3);
      }
    }
  }
  __device__ float4 four(int at) const {
    return at < n ? *reinterpret_cast<const float4*>(logits + at)
                  : float4{-INFINITY, -INFINITY, -INFINITY, -INFINITY};  // no tokens
  }
  __device__ void expect(int mails) {
    if (threadIdx.x == 0) arrive_expecting(&c.told[turn], uint32_t(mails * sizeof(Mail)));
  }
  __device__ void read_mail() { wait_cluster(&c.told[turn], parity); }
  __device__ void next_turn() {
    if (turn == 1) parity ^= 1;  // both have been used
    turn = 1 - turn;
  }

  __device__ void divide(const Bracket& b, Rank from, bool by_value, bool with_sums) {
    double sum;
    int count;
    fill_regions(*this, odds, b, from, by_value, with_sums, c.regions, s.table, sum, count);
    const int r = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    expect(kBlocks * kRegions);
    if (lane < kBlocks)
      post({sum, count, 0}, address_in(&c.mail[turn][rank][r], uint32_t(lane)),
           address_in(&c.told[turn], uint32_t(lane)));
    if (r == 0) {
      read_mail();
      if (lane < kRegions) {
        sum = 0;
        int all = 0, before = 0;
        for (int block = 0; block < kBlocks; ++block) {
          const Mail its = c.mail[turn][block][lane];
          sum += its.sum, all += its.count;
          if (block < rank) before += its.count;
        }
        s.table.sums[lane] = sum, s.table.counts[lane] = all, s.table.before[lane] = before;
      }
    }
    __syncthreads();
    next_turn();
  }

  // Tokens of `b` of a rank of at least `counted`, `count` in all, to the first block; `before` in earlier
  // ones.
  __device__ void send(const Bracket& b, Rank counted, int count, int before) {
    const float bottom = b.bottom(), top = b.top();
    __syncthreads();
    if (threadIdx.x == 0) {
      c.hits = before;
      if (rank == 0) arrive_expecting(&c.arrived, uint32_t(count) * sizeof(Rank));
    }
    __syncthreads();
    const uint32_t barrier = address_in(&c.arrived, 0);
    each([&](float logit, int64_t id) {
      if (!(logit >= bottom && logit <= top)) return;
      const uint32_t key = key_of(logit);
      const Rank its = rank_of(key, id);
      if (!b.holds(b.value(key, id)) || its < counted) return;
      const int at = atomicAdd(&c.hits, 1);  // in any order: nothing depends on it
      asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(
                       address_in(&c.sent[at], 0)),
                   "l"(its), "r"(barrier)
                   : "memory");
    });
    if (rank == 0) wait_cluster(&c.arrived, parity_arrived);
    parity_arrived ^= 1;
  }

  __device__ Answer find(const Bracket& b, const Query& query, double above, double sum_above, Rank from,
                         Rank counted, int count, int before) {
    send(b, counted, count, before);
    Answer found{};
    expect(2);
    if (rank == 0) {
      const InList list{c.sent, count};
      OneBlock<InList, uint8_t> block{list, odds, c.regions, s};
      const Task task{.least = b.equal ? b.key : b.low, .most = key_of(b.top()), .from = from, .n = b.n};
      found = answer(block, task, &query, b, above, sum_above, count);
      if (threadIdx.x < kBlocks) {
        const uint32_t barrier = address_in(&c.told[turn], threadIdx.x);
        post({found.sum, int(found.count), 0}, address_in(&c.mail[turn][0][0], threadIdx.x), barrier);
        post({__longlong_as_double((long long)found.rank), 0, 0},
             address_in(&c.mail[turn][0][1], threadIdx.x), barrier);
      }
    }
    read_mail();
    const Mail sum = c.mail[turn][0][0], token = c.mail[turn][0][1];
    next_turn();
    return {Rank(__double_as_longlong(token.sum)), sum.sum, sum.count};
  }
  // In the first block alone: the others have done their part.
  __device__ Answer draw(const Bracket& b, Task task, Rank counted, Rank from, int count, int before) {
    send(b, counted, count, before);
    if (rank > 0) return {};
    const InList list{c.sent, count};
    OneBlock<InList, uint8_t> block{list, odds, c.regions, s};
    task.from = from, task.least = max(task.least, b.low);
    if (count <= kFew) return block.draw(b, task, from, from, count, 0);
    return answer(block, task);
  }
};

__global__ void __launch_bounds__(kThreads, 2)
    sample_kernel(const __grid_constant__ SampleArgs a, int64_t width) {
  extern __shared__ __align__(16) uint8_t memory[];
  ClusterShared& c = *reinterpret_cast<ClusterShared*>(memory);
  const int rank = int(rank_in_cluster()), lane = int(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    for (Barrier* b : {&c.told[0], &c.told[1], &c.arrived}) barrier_init(b, 1);
    barrier_init_done();
  }
  cluster_arrive_relaxed();
  if (threadIdx.x < 32) c.s.powers[threadIdx.x] = exp2(double(threadIdx.x) / 32);
  start();
  const int64_t row = blockIdx.x / kBlocks, begin = rank * width;
  const int n = int(max(int64_t(0), min(width, a.logits.cols - begin)));
  const float* logits = a.logits.data + row * a.logits.ld + begin;
  float4 x[kFours];
  float most = -INFINITY;
#pragma unroll
  for (int k = 0; k < kFours; ++k) {
    const int at = 4 * (int(threadIdx.x) + kThreads * k);
    x[k] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    if (at < n) x[k] = *reinterpret_cast<const float4*>(logits + at);
  }
#pragma unroll
  for (int k = 0; k < kFours; ++k)
    most = fmaxf(most, fmaxf(fmaxf(x[k].x, x[k].y), fmaxf(x[k].z, x[k].w)));  // passes over NaN
  most = warp_max(most);
  if (lane == 0) c.largest[threadIdx.x / 32] = most;
  if (threadIdx.x == 0) arrive_expecting(&c.told[0], kBlocks * sizeof(Mail));
  cluster_wait();
  __syncthreads();
  if (threadIdx.x < kBlocks) {
    for (const float its : c.largest) most = fmaxf(most, its);
    post({0, __float_as_int(most), 0}, address_in(&c.mail[0][rank][0], threadIdx.x),
         address_in(&c.told[0], threadIdx.x));
  }
  wait_cluster(&c.told[0], 0);
  for (int block = 0; block < kBlocks; ++block) most = fmaxf(most, __int_as_float(c.mail[0][block][0].count));
  if (most == -INFINITY) {
    if (rank == 0 && threadIdx.x == 0) a.tokens[row] = 0;
    return;
  }
  const Odds odds{1 / a.temperature, most, c.s.powers};
  InCluster tokens{.logits = logits, .n = n, .odds = odds, .c = c, .s = c.s, .rank = rank, .begin = begin};
  const Answer drawn = draw_token(tokens, a, row, most);
  if (rank == 0 && threadIdx.x == 0) a.tokens[row] = id_in(drawn.rank);
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
  config.dynamicSmemBytes = sizeof(ClusterShared);
  config.stream = queue.stream;
  config.attrs = attributes;
  config.numAttrs = queue.overlap ? 2 : 1;
  cudaError_t code = cudaFuncSetAttribute(sample_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          int(sizeof(ClusterShared)));
  if (code == cudaSuccess) code = cudaLaunchKernelEx(&config, sample_kernel, args, width);
  launched(code, "sample");
}

}  // namespace cachalot::cuda::hopper
