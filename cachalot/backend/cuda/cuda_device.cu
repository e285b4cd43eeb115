// Memory, streams, transfers and events.
//
// Transfers go through pinned memory of ours: an upload has copied `host` before it returns without waiting
// for the card, and a download runs beside later work. Both wait only when their staging memory is full.
#include "backend/cuda/cuda_device.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>

#include "backend/cuda/blas_lt.h"
#include "backend/cuda/cuda.h"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/families.h"

namespace cachalot {

namespace cuda {

namespace {
std::atomic<int64_t> allocations = 0, waits = 0;  // CudaCounters
}

void must(cudaError_t code, const char* doing) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // the next call starts clean
  throw Error(std::string("CUDA: ") + doing + ": " + cudaGetErrorString(code))
      .hint("nvidia-smi shows the state of the card and who uses its memory");
}

void require_no_f64(const char* op, std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* t : tensors)
    CHECK(t->dtype != DType::f64 || !*t,
          std::string(op) + ": f64 runs on the ref device only, got " + t->describe());
}

namespace {

// In the order of FaultOf: the operation, and what its index counts.
struct FaultName {
  const char *op, *index;
};
constexpr FaultName kFaultNames[] = {{"grouped_gemm", "offset"},
                                     {"grouped_weight_grad", "offset"},
                                     {"attention_forward", "start"},
                                     {"attention_backward", "start"},
                                     {"latent_attention", "cache row"},
                                     {"latent_append", "cache row"},
                                     {"latent_gather", "cache row"},
                                     {"rope", "position"},
                                     {"gate_forward", "replayed expert"},
                                     {"gate_backward", "expert"},
                                     {"balance_loss", "start"},
                                     {"permute_plan", "expert"},
                                     {"permute", "row"},
                                     {"unpermute", "row"},
                                     {"unpermute_backward", "row"},
                                     {"gather_rows", "row"},
                                     {"scatter_rows", "row"},
                                     {"scatter_add_rows", "row"},
                                     {"cross_entropy", "target"},
                                     {"quantize", "offset"}};
constexpr int kFaultCount = int(FaultOf::kCount);
static_assert(sizeof(kFaultNames) / sizeof(kFaultNames[0]) == kFaultCount);

class CudaEvent : public Event {
 public:
  CudaEvent() { must(cudaEventCreate(&event_), "creating an event"); }
  ~CudaEvent() override { cudaEventDestroy(event_); }
  cudaEvent_t get() const { return event_; }
  double seconds_after(const Event& earlier) const override {
    const auto* other = dynamic_cast<const CudaEvent*>(&earlier);
    CHECK(other, "events of two kinds of device");
    float ms = 0;
    must(cudaEventElapsedTime(&ms, other->event_, event_), "reading the time between two events");
    return 1e-3 * double(ms);
  }

 private:
  cudaEvent_t event_ = nullptr;
};

// The parts of a tensor that a transfer moves at once, each at most `most` bytes: whole rows as long as one
// fits. body(where on the device, bytes between its rows, offset in the host's copy, bytes a row, rows)
template <class Body> void for_pieces(const Tensor& t, int64_t most, const Body& body) {
  const int64_t size = size_of(t.dtype);
  const bool contiguous = t.ld == t.cols || t.rows == 1;
  const int64_t rows = contiguous ? 1 : t.rows, row = (contiguous ? t.size() : t.cols) * size;
  const int64_t pitch = contiguous ? row : t.ld * size;
  auto* data = static_cast<uint8_t*>(t.data);
  if (row > most) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t at = 0; at < row; at += most)
        body(data + r * pitch + at, pitch, r * row + at, std::min(most, row - at), int64_t(1));
  } else {
    const int64_t group = std::min(rows, most / row);
    for (int64_t r = 0; r < rows; r += group)
      body(data + r * pitch, pitch, r * row, row, std::min(group, rows - r));
  }
}

}  // namespace

struct Lane {
  static constexpr int64_t kHalf = int64_t(4) << 20;  // of the memory for uploads; all of that for downloads

  cudaStream_t stream = nullptr;
  void* workspace = nullptr;
  uint32_t* counters = nullptr;
  cublasLtHandle_t blas = nullptr;
  unsigned long long* faults = nullptr;  // host memory that the device writes to

  // Uploads fill one half while the card may still read the other.
  uint8_t* up = nullptr;
  cudaEvent_t read[2] = {};  // all of that half has been read
  int half = 0;
  int64_t up_used = 0;

  struct Arrival {
    const uint8_t* from;
    uint8_t* to;
    int64_t bytes;
  };
  uint8_t* down = nullptr;
  int64_t down_used = 0;
  std::vector<Arrival> arrivals;

  Lane() = default;
  Lane(const Lane&) = delete;
  ~Lane() {
    if (blas) blas_lt().Destroy(blas);
    for (cudaEvent_t e : read)
      if (e) cudaEventDestroy(e);
    cudaFree(workspace);
    cudaFree(counters);
    for (void* pinned : {static_cast<void*>(faults), static_cast<void*>(up), static_cast<void*>(down)})
      cudaFreeHost(pinned);
    if (stream) cudaStreamDestroy(stream);
    cudaGetLastError();
  }

  void open() {
    must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "opening a stream");
    ++allocations;
    must(cudaMalloc(&workspace, size_t(CudaBackend::kWorkspace)), "taking 256 MiB for a stream's workspace");
    ++allocations;
    must(cudaMalloc(reinterpret_cast<void**>(&counters), CudaBackend::kCounters * sizeof(uint32_t)),
         "taking memory for counters");
    must(cudaMemsetAsync(counters, 0, CudaBackend::kCounters * sizeof(uint32_t), stream),
         "clearing counters");
    const auto pinned = [](auto** p, size_t bytes) {
      must(cudaHostAlloc(reinterpret_cast<void**>(p), bytes, cudaHostAllocMapped), "taking pinned memory");
    };
    pinned(&faults, kFaultCount * sizeof(*faults));
    std::fill(faults, faults + kFaultCount, 0ull);
    pinned(&up, 2 * kHalf);
    pinned(&down, kHalf);
    for (cudaEvent_t& e : read)
      must(cudaEventCreateWithFlags(&e, cudaEventDisableTiming), "creating an event");
    const cublasStatus_t status = blas_lt().Create(&blas);
    if (status != CUBLAS_STATUS_SUCCESS)
      throw Error(std::string("CUDA: opening cuBLASLt: ") + blas_lt().GetStatusString(status))
          .hint("the library libcublasLt must be the one of the CUDA toolkit that built this program");
  }

  // Pinned memory that stays untouched until the copy out of it has run. bytes <= kHalf
  uint8_t* take_up(int64_t bytes) {
    bytes = (bytes + 15) / 16 * 16;
    if (up_used + bytes > kHalf) {
      must(cudaEventRecord(read[half], stream), "recording an event");
      half = 1 - half, up_used = 0;
      if (cudaEventQuery(read[half]) == cudaErrorNotReady) ++waits;
      must(cudaEventSynchronize(read[half]), "waiting for an earlier upload");  // at once when never recorded
    }
    uint8_t* p = up + half * kHalf + up_used;
    up_used += bytes;
    return p;
  }
};

CudaBackend::CudaBackend(std::shared_ptr<const Context> context) : context_(std::move(context)) {
  select();
  {
    const std::lock_guard lock(context_->lanes_in_use);
    if (!context_->idle.empty()) {
      lane_ = std::move(context_->idle.back());
      context_->idle.pop_back();
    }
  }
  if (!lane_) {
    lane_ = std::make_shared<Lane>();
    lane_->open();
  }
  stream_ = lane_->stream;
  queue_ = {.stream = stream_, .overlap = kOverlappedLaunches.runs_on(context_->major)};
  workspace_ = lane_->workspace;
  counters_ = lane_->counters;
  blas_ = lane_->blas;
  faults_ = {lane_->faults};
}

CudaBackend::~CudaBackend() {
  if (cudaSetDevice(context_->device) != cudaSuccess || cudaStreamSynchronize(stream_) != cudaSuccess) {
    cudaGetLastError();
    return;  // a broken card: nothing to keep
  }
  lane_->arrivals.clear();  // nobody waited for them
  lane_->down_used = 0;
  std::fill(lane_->faults, lane_->faults + kFaultCount, 0ull);
  const std::lock_guard lock(context_->lanes_in_use);
  context_->idle.push_back(std::move(lane_));
}

void CudaBackend::select() const { must(cudaSetDevice(context_->device), "selecting the device"); }

void CudaBackend::upload(const void* host, Tensor dst) {
  if (dst.size() == 0) return;
  select();
  for_pieces(dst, Lane::kHalf, [&](uint8_t* to, int64_t pitch, int64_t offset, int64_t row, int64_t rows) {
    uint8_t* staged = lane_->take_up(row * rows);
    std::memcpy(staged, static_cast<const uint8_t*>(host) + offset, size_t(row * rows));
    must(cudaMemcpy2DAsync(to, size_t(std::max(pitch, row)), staged, size_t(row), size_t(row), size_t(rows),
                           cudaMemcpyHostToDevice, stream_),
         "uploading");
  });
}

void CudaBackend::download(Tensor src, void* host) {
  if (src.size() == 0) return;
  select();
  for_pieces(src, Lane::kHalf, [&](uint8_t* from, int64_t pitch, int64_t offset, int64_t row, int64_t rows) {
    const int64_t bytes = row * rows;
    if (lane_->down_used + bytes > Lane::kHalf) deliver();
    uint8_t* staged = lane_->down + lane_->down_used;
    lane_->down_used += (bytes + 15) / 16 * 16;
    must(cudaMemcpy2DAsync(staged, size_t(row), from, size_t(std::max(pitch, row)), size_t(row), size_t(rows),
                           cudaMemcpyDeviceToHost, stream_),
         "downloading");
    lane_->arrivals.push_back({staged, static_cast<uint8_t*>(host) + offset, bytes});
  });
}

void CudaBackend::deliver() {
  ++waits;
  must(cudaStreamSynchronize(stream_), "running what was queued");
  for (const Lane::Arrival& a : lane_->arrivals) std::memcpy(a.to, a.from, size_t(a.bytes));
  lane_->arrivals.clear();
  lane_->down_used = 0;
}

void CudaBackend::synchronize() {
  select();
  deliver();
  for (int i = 0; i < kFaultCount; ++i) {
    volatile unsigned long long* word = lane_->faults + i;
    const unsigned long long found = *word;
    if (found == 0) continue;
    std::fill(lane_->faults, lane_->faults + kFaultCount, 0ull);
    throw InternalError(std::string(kFaultNames[i].op) + ": " + kFaultNames[i].index + " " +
                        std::to_string(int32_t(uint32_t(found))) + " of " +
                        std::to_string(found >> 32 & 0x7FFFFFFFu) + " (found by the device)");
  }
}

EventPtr CudaBackend::record() {
  select();
  auto event = std::make_shared<CudaEvent>();
  must(cudaEventRecord(event->get(), stream_), "recording an event");
  return event;
}

void CudaBackend::wait(const EventPtr& e) {
  select();
  const auto* event = dynamic_cast<const CudaEvent*>(e.get());
  CHECK(event, "an event of another kind of device");
  must(cudaStreamWaitEvent(stream_, event->get()), "waiting for an event");
}

}  // namespace cuda

namespace {

class CudaDevice : public Device {
 public:
  CudaDevice(std::shared_ptr<cuda::Context> context, std::string name)
      : context_(std::move(context)), name_(std::move(name)) {}

  std::string name() const override { return name_; }

  void* take(int64_t bytes) override {
    CHECK(bytes >= 0);
    void* data = nullptr;
    ++cuda::allocations;
    if (cudaSetDevice(context_->device) == cudaSuccess &&
        cudaMalloc(&data, size_t(std::max<int64_t>(bytes, 1))) == cudaSuccess)
      return data;
    cudaGetLastError();
    return nullptr;
  }
  void give(void* data, int64_t) noexcept override {
    cudaSetDevice(context_->device);
    cudaFree(data);  // waits for what still uses it
    cudaGetLastError();
  }
  int64_t free_bytes() const override {
    size_t free = 0, all = 0;
    cuda::must(cudaSetDevice(context_->device), "selecting the device");
    cuda::must(cudaMemGetInfo(&free, &all), "asking for the free memory");
    return std::max<int64_t>(0, int64_t(free) - (opened_ ? 0 : kOfFirstStream));
  }
  std::unique_ptr<Backend> open_backend() override {
    opened_ = true;
    return std::make_unique<cuda::CudaBackend>(context_);
  }

 private:
  // A step's memory is planned before there is a stream: it is not promised what the first one takes, and the
  // driver with it, which loads kernels when they first run.
  static constexpr int64_t kOfFirstStream = cuda::CudaBackend::kWorkspace + (int64_t(128) << 20);

  std::shared_ptr<cuda::Context> context_;
  std::string name_;
  std::atomic<bool> opened_ = false;
};

}  // namespace

CudaCounters cuda_counters() { return {.allocations = cuda::allocations, .waits = cuda::waits}; }

std::unique_ptr<Device> open_cuda_device(int index) {
  const CudaStatus status = probe_cuda();
  if (status.devices.empty()) throw Error("device cuda: " + status.message).hint(status.hint);
  const int64_t count = int64_t(status.devices.size());
  if (index < 0 || index >= count)
    throw Error("device cuda:" + std::to_string(index) + ": the driver shows " + std::to_string(count) +
                (count == 1 ? " GPU" : " GPUs"))
        .hint(count == 1 ? "use cuda:0" : "use cuda:0 to cuda:" + std::to_string(count - 1));
  CudaDeviceInfo info = status.devices[size_t(index)];
  if (!info.usable())
    throw Error("device cuda:" + std::to_string(index) + ": " + info.name + " has compute capability " +
                std::to_string(info.major) + "." + std::to_string(info.minor))
        .hint("8.0 (Ampere) is the oldest that the kernels are built for; use the device cpu");
  info.major = cuda_generation(info);
  const auto context = std::make_shared<cuda::Context>();
  context->device = index;
  context->multiprocessors = int(info.multiprocessors);
  context->major = info.major, context->minor = info.minor;
  context->l2_bytes = info.l2_bytes;
  cuda::blas_lt();  // before anything is taken: a missing library is said in one line
  cuda::must(cudaSetDevice(index), "selecting the device");
  // Programs show the name of their device when they begin: where a card lacks something, it says so.
  const char* notice = cuda_fallbacks(info).empty() ? "" : "; portable kernels, slower: see cachalot doctor";
  return std::make_unique<CudaDevice>(context,
                                      "cuda:" + std::to_string(index) + " (" + info.name + notice + ")");
}

}  // namespace cachalot
