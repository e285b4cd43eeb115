#include "backend/cuda/blas_lt.h"

#include <dlfcn.h>

#include <cstdlib>
#include <vector>

#include "backend/cuda/cuda.h"
#include "base/error.h"

namespace cachalot {

namespace cuda {

namespace {

// The library of the toolkit that this program was built with: another major version has other structs.
const std::string kName = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);

BlasLt load() {
  // Where the system looks, then where CUDA's packages put it without telling the system.
  std::vector<std::string> places{kName};
  for (const char* variable : {"CUDA_HOME", "CUDA_PATH"})
    if (const char* home = std::getenv(variable)) places.push_back(std::string(home) + "/lib64/" + kName);
  places.push_back("/usr/local/cuda/lib64/" + kName);
  places.push_back("/usr/local/cuda-" + std::to_string(CUDART_VERSION / 1000) + "/lib64/" + kName);

  BlasLt lt;
  void* library = nullptr;
  for (const std::string& place : places) {
    library = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library) break;
    const char* why = dlerror();
    if (lt.problem.empty()) lt.problem = why ? why : kName + " cannot be loaded";
  }
  if (!library) return lt;
  lt.problem.clear();
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (!function && lt.problem.empty()) lt.problem = kName + " has no " + name;
  };
#define CACHALOT_BLAS_LT_FIND(name) find(lt.name, "cublasLt" #name);
  CACHALOT_BLAS_LT(CACHALOT_BLAS_LT_FIND)
#undef CACHALOT_BLAS_LT_FIND
  return lt;
}

}  // namespace

const BlasLt& find_blas_lt() {
  static const BlasLt lt = load();
  return lt;
}

const BlasLt& blas_lt() {
  const BlasLt& lt = find_blas_lt();
  if (!lt.problem.empty())
    throw Error("device cuda: cuBLASLt is missing: " + lt.problem).hint(probe_cuda_blas().hint);
  return lt;
}

}  // namespace cuda

CudaLibrary probe_cuda_blas() {
  const cuda::BlasLt& lt = cuda::find_blas_lt();
  CudaLibrary library{.problem = lt.problem};
  if (lt.problem.empty()) {
    const size_t v = lt.GetVersion();  // 130100: 13.1.0
    library.version =
        std::to_string(v / 10000) + "." + std::to_string(v / 100 % 100) + "." + std::to_string(v % 100);
  } else {
    const std::string major = std::to_string(CUDART_VERSION / 1000);
    library.hint = "install cuBLAS of CUDA " + major +
                   " (it comes with the toolkit), or put the folder that holds " + cuda::kName +
                   " into LD_LIBRARY_PATH; or use the device cpu";
  }
  return library;
}

}  // namespace cachalot
