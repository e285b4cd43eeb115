// The seam to CUDA: plain C++, the same interface whether the program was built with CUDA (cuda.cu) or
// without (no_cuda.cc). Asking never throws and never creates a context on a device: it is safe anywhere.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cachalot {

struct CudaDeviceInfo {
  std::string name;          // "NVIDIA H200"
  int major = 0, minor = 0;  // compute capability: 9.0 is Hopper
  int64_t memory_bytes = 0;  // in all, not what is free now
  int64_t multiprocessors = 0;
  int64_t l2_bytes = 0;
  double memory_bytes_per_second = 0;         // bus width times clock: the nominal ceiling; 0 when unknown
  bool usable() const { return major >= 8; }  // the oldest that our portable kernels are built for
};

struct CudaStatus {
  bool built = false;     // this program contains CUDA code
  bool driver = false;    // and a driver new enough for it runs here
  std::string message{};  // one line: what was found
  std::string hint{};     // what to do about what is missing; "" when nothing is
  std::vector<CudaDeviceInfo> devices{};
};
CudaStatus probe_cuda();

// What probe_cuda() says where no card can be had for want of a driver; versions as CUDA counts them (13000: 13.0),
// 0 for a driver that is not there.
CudaStatus cuda_without_driver(int driver, int runtime);

// cuBLASLt, which the products of a GPU need and which is looked for when the first device opens.
struct CudaLibrary {
  std::string version{};  // "13.1.0"
  std::string problem{};  // one line; "" when it can be used
  std::string hint{};
};
CudaLibrary probe_cuda_blas();

// What this card runs in another way than a newer one would, and what that costs; nothing on Hopper. The
// list of what asks for more than the oldest card is backend/cuda/families.h.
struct CudaFallback {
  std::string what, instead, cost;
};
std::vector<CudaFallback> cuda_fallbacks(const CudaDeviceInfo& device);

// The generation of cards (9: Hopper) that the kernels of a device are chosen for: the card's own, or 8 (Ampere)
// where the variable CACHALOT_CUDA_KERNELS says "portable", which is how what older cards run is tested on newer
// ones. Throws Error when it says anything else.
int cuda_generation(const CudaDeviceInfo& info);

// Copies `bytes` on a device with a kernel of ours, checks every byte, and times it: a proof that compiler,
// driver and card work together. Median of `repeats`; bytes read and written both count.
struct CudaCopyTest {
  bool equal = false;
  double seconds = 0;
  double bytes_per_second = 0;
};
CudaCopyTest test_cuda_copy(int device, int64_t bytes = int64_t(1) << 30, int repeats = 20);  // throws Error

}  // namespace cachalot
