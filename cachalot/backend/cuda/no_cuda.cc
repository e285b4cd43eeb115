// Compiled instead of the .cu files when CACHALOT_CUDA is off.
#include "backend/cuda/cuda.h"
#include "backend/cuda/cuda_device.h"
#include "backend/masked_gemm.h"
#include "base/error.h"

namespace cachalot {

namespace {
constexpr const char* kMessage = "this program was built without CUDA";
constexpr const char* kHint =
    "cmake --preset cuda && cmake --build --preset cuda (needs nvcc of CUDA 13); "
    "the program is then build/cuda/cachalot";
}  // namespace

CudaStatus probe_cuda() { return {.message = kMessage, .hint = kHint}; }

CudaStatus cuda_without_driver(int, int) { return probe_cuda(); }

CudaLibrary probe_cuda_blas() { return {.problem = kMessage, .hint = kHint}; }

std::vector<CudaFallback> cuda_fallbacks(const CudaDeviceInfo&) { return {}; }

CudaCopyTest test_cuda_copy(int, int64_t, int) { throw Error(kMessage).hint(kHint); }

CudaCounters cuda_counters() { return {}; }

bool masked_gemm(Backend&, const MaskedGemm&) { return false; }

int cuda_generation(const CudaDeviceInfo& info) { return info.major; }

std::unique_ptr<Device> open_cuda_device(int) {
  throw Error(std::string("device cuda: ") + kMessage).hint(std::string(kHint) + "; or use the device cpu");
}

}  // namespace cachalot
