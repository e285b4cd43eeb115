// cuBLASLt, loaded when the first stream of a GPU opens: a program built with CUDA starts without the library
// (some 500 MB) where nobody asks for a GPU.
#pragma once

#include <cublasLt.h>

#include <string>

namespace cachalot::cuda {

// Its functions under their own names, without "cublasLt".
#define CACHALOT_BLAS_LT(X)       \
  X(Create)                       \
  X(Destroy)                      \
  X(GetStatusString)              \
  X(GetVersion)                   \
  X(Matmul)                       \
  X(MatmulAlgoGetHeuristic)       \
  X(MatmulDescCreate)             \
  X(MatmulDescDestroy)            \
  X(MatmulDescSetAttribute)       \
  X(MatmulPreferenceCreate)       \
  X(MatmulPreferenceDestroy)      \
  X(MatmulPreferenceSetAttribute) \
  X(MatrixLayoutCreate)           \
  X(MatrixLayoutDestroy)          \
  X(MatrixLayoutSetAttribute)

struct BlasLt {
#define CACHALOT_BLAS_LT_MEMBER(name) decltype(&cublasLt##name) name = nullptr;
  CACHALOT_BLAS_LT(CACHALOT_BLAS_LT_MEMBER)
#undef CACHALOT_BLAS_LT_MEMBER
  std::string problem;  // "" when every function is there
};

// Loads the library the first time; never throws.
const BlasLt& find_blas_lt();
// The same, or Error with what is missing.
const BlasLt& blas_lt();

}  // namespace cachalot::cuda
