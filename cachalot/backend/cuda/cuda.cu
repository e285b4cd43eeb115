#include "backend/cuda/cuda.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "backend/cuda/families.h"
#include "base/error.h"

namespace cachalot {

namespace {

std::string version(int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); }

// CUDA calls that a user's machine can make fail: no memory, a card in a bad state, a lost driver.
void must(cudaError_t code, const char* doing) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // the next call starts clean
  throw Error(std::string("CUDA: ") + doing + ": " + cudaGetErrorString(code))
      .hint("nvidia-smi shows the state of the card and who uses its memory");
}

struct DeviceFree {
  void operator()(void* p) const { cudaFree(p); }
};
using DeviceMemory = std::unique_ptr<void, DeviceFree>;

DeviceMemory device_memory(int64_t bytes) {
  void* p = nullptr;
  must(cudaMalloc(&p, size_t(bytes)), "allocating memory for the copy test");
  return DeviceMemory(p);
}

struct Event {
  cudaEvent_t event = nullptr;
  Event() { must(cudaEventCreate(&event), "creating an event"); }
  ~Event() { cudaEventDestroy(event); }
  Event(const Event&) = delete;
};

// Word i of the pattern: odd multiplier, so that a shifted or repeated block never looks right.
__device__ uint32_t pattern(int64_t i, uint32_t salt) {
  return uint32_t(i) * 2654435761u + uint32_t(i >> 32) + salt;
}

__global__ void fill(uint32_t* x, int64_t n, uint32_t salt) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x)
    x[i] = pattern(i, salt);
}

// y = x, 16 bytes a thread and step. Moves 2 * 16 * n bytes; memory-bound.
__global__ void copy(const uint4* x, uint4* y, int64_t n) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x)
    y[i] = x[i];
}

__global__ void count_different(const uint32_t* x, int64_t n, uint32_t salt, unsigned long long* different) {
  unsigned long long mine = 0;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x)
    mine += x[i] != pattern(i, salt);
  if (mine) atomicAdd(different, mine);
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  return cudaDeviceGetAttribute(&value, which, device) == cudaSuccess ? value : 0;
}

}  // namespace

CudaStatus cuda_without_driver(int driver, int runtime) {
  CudaStatus status{.built = true};
  if (driver == 0) {
    status.message = "no NVIDIA driver is loaded (built for CUDA " + version(runtime) + ")";
    status.hint = "install the NVIDIA driver; in a container, start it with the GPUs passed through";
  } else {
    status.message =
        "the driver is for CUDA " + version(driver) + ", the program was built for " + version(runtime);
    status.hint = "update the NVIDIA driver, or build with an older CUDA toolkit";
  }
  return status;
}

CudaStatus probe_cuda() {
  CudaStatus status{.built = true};
  int driver = 0, runtime = 0, count = 0;
  cudaDriverGetVersion(&driver);  // 0 where no driver is loaded
  cudaRuntimeGetVersion(&runtime);
  const cudaError_t code = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (code == cudaErrorInsufficientDriver || driver == 0) return cuda_without_driver(driver, runtime);
  status.driver = true;
  if (code == cudaErrorNoDevice || (code == cudaSuccess && count == 0)) {
    status.message = "the driver (CUDA " + version(driver) + ") shows no GPU";
    status.hint = "check nvidia-smi and the variable CUDA_VISIBLE_DEVICES";
    return status;
  }
  if (code != cudaSuccess) {
    status.message = std::string("the driver does not answer: ") + cudaGetErrorString(code);
    status.hint = "nvidia-smi shows the state of the card";
    return status;
  }
  for (int d = 0; d < count; ++d) {
    cudaDeviceProp p{};
    if (cudaGetDeviceProperties(&p, d) != cudaSuccess) continue;
    const double clock = 1e3 * attribute(cudaDevAttrMemoryClockRate, d);  // kHz; two transfers a cycle
    status.devices.push_back(
        {.name = p.name,
         .major = p.major,
         .minor = p.minor,
         .memory_bytes = int64_t(p.totalGlobalMem),
         .multiprocessors = p.multiProcessorCount,
         .l2_bytes = p.l2CacheSize,
         .memory_bytes_per_second = 2 * clock * attribute(cudaDevAttrGlobalMemoryBusWidth, d) / 8});
  }
  status.message =
      std::to_string(count) + (count == 1 ? " GPU" : " GPUs") + ", driver for CUDA " + version(driver);
  return status;
}

std::vector<CudaFallback> cuda_fallbacks(const CudaDeviceInfo& device) {
  std::vector<CudaFallback> list;
  for (const cuda::KernelFamily* family : cuda::kFamilies)
    if (!family->runs_on(device.major)) list.push_back({family->what, family->instead, family->cost});
  return list;
}

int cuda_generation(const CudaDeviceInfo& info) {
  const char* asked = std::getenv("CACHALOT_CUDA_KERNELS");
  if (!asked || !*asked) return info.major;
  if (std::strcmp(asked, "portable") != 0)
    throw Error(std::string("CACHALOT_CUDA_KERNELS is \"") + asked + "\"")
        .hint("portable: the kernels of the oldest card; unset it to take the best that the card runs");
  return std::min(info.major, 8);
}

CudaCopyTest test_cuda_copy(int device, int64_t bytes, int repeats) {
  CHECK(bytes > 0 && repeats > 0);
  const CudaStatus status = probe_cuda();
  if (status.devices.empty()) throw Error("CUDA: " + status.message).hint(status.hint);
  must(cudaSetDevice(device), "selecting the device");
  const int64_t n = (bytes + 15) / 16, words = 4 * n;
  const DeviceMemory x = device_memory(16 * n), y = device_memory(16 * n), counter = device_memory(8);
  const int blocks =
      int(std::min<int64_t>((n + 255) / 256, 32 * attribute(cudaDevAttrMultiProcessorCount, device)));

  const uint32_t salt = 0x9E3779B9u;
  fill<<<blocks, 256>>>(static_cast<uint32_t*>(x.get()), words, salt);
  fill<<<blocks, 256>>>(static_cast<uint32_t*>(y.get()), words, 0);
  must(cudaMemset(counter.get(), 0, 8), "clearing the counter");

  const Event start, stop;
  std::vector<double> seconds;
  for (int r = 0; r <= repeats; ++r) {  // the first one warms up
    must(cudaEventRecord(start.event), "timing");
    copy<<<blocks, 256>>>(static_cast<const uint4*>(x.get()), static_cast<uint4*>(y.get()), n);
    must(cudaEventRecord(stop.event), "timing");
    must(cudaEventSynchronize(stop.event), "running the copy kernel");
    float ms = 0;
    must(cudaEventElapsedTime(&ms, start.event, stop.event), "timing");
    if (r > 0) seconds.push_back(1e-3 * ms);
  }
  count_different<<<blocks, 256>>>(static_cast<const uint32_t*>(y.get()), words, salt,
                                   static_cast<unsigned long long*>(counter.get()));
  unsigned long long different = 0;
  must(cudaMemcpy(&different, counter.get(), 8, cudaMemcpyDeviceToHost), "reading the result");

  std::nth_element(seconds.begin(), seconds.begin() + long(seconds.size() / 2), seconds.end());
  const double median = seconds[seconds.size() / 2];
  return {.equal = different == 0, .seconds = median, .bytes_per_second = 2.0 * 16.0 * double(n) / median};
}

}  // namespace cachalot
