// CUDA calls of this folder that a user's machine can make fail: a card in a bad state, a lost driver.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "base/error.h"

namespace cachalot::cuda::hopper {

inline void launched(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // the next call starts clean
  throw Error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(code))
      .hint("nvidia-smi shows the state of the card and who uses its memory");
}

}  // namespace cachalot::cuda::hopper
