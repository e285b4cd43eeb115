#include "backend/cuda/hopper/tensor_map.h"

#include <cuda_runtime.h>

#include <string>

#include "base/error.h"

namespace cachalot::cuda::hopper {

namespace {

// libcuda is not linked (the program starts without a driver), so its one function is asked for.
decltype(&cuTensorMapEncodeTiled) find_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result{};
  const cudaError_t code = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                            cudaEnableDefault, &result);
  if (code != cudaSuccess || result != cudaDriverEntryPointSuccess || !function)
    throw Error(std::string("this NVIDIA driver has no cuTensorMapEncodeTiled (") + cudaGetErrorString(code) +
                ")")
        .hint("Hopper kernels need driver 525 or later: nvidia-smi shows yours");
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

CUtensorMapDataType type_of(DType t) {
  switch (t) {
    case DType::f32: return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    case DType::bf16: return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::e4m3: return CU_TENSOR_MAP_DATA_TYPE_UINT8;
    case DType::i32: return CU_TENSOR_MAP_DATA_TYPE_INT32;
    case DType::f64: return CU_TENSOR_MAP_DATA_TYPE_FLOAT64;
  }
  CHECK(false);
}

}  // namespace

CUtensorMap tensor_map(const Boxes& b) {
  static const auto encode = find_encoder();
  cuuint64_t sizes[4], strides[3] = {};
  cuuint32_t box[4], every[4] = {1, 1, 1, 1};
  for (int i = 0; i < b.dimensions; ++i) {
    sizes[i] = cuuint64_t(b.size[i]);
    box[i] = cuuint32_t(b.box[i]);
    if (i > 0) strides[i - 1] = cuuint64_t(b.stride[i]);
  }
  CUtensorMap map{};
  const auto swizzle = static_cast<CUtensorMapSwizzle>(b.swizzle);  // the same order
  const auto promotion = static_cast<CUtensorMapL2promotion>(b.promotion);
  const CUresult code =
      encode(&map, type_of(b.dtype), cuuint32_t(b.dimensions), const_cast<void*>(b.data), sizes, strides, box,
             every, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK(code == CUDA_SUCCESS, "cuTensorMapEncodeTiled " + std::to_string(code) + ": " +
                                  std::string(name_of(b.dtype)) + " [" + std::to_string(b.size[1]) + ", " +
                                  std::to_string(b.size[0]) + "], rows of " + std::to_string(b.stride[1]) +
                                  " bytes, box [" + std::to_string(b.box[1]) + ", " +
                                  std::to_string(b.box[0]) + "]");
  return map;
}

}  // namespace cachalot::cuda::hopper
