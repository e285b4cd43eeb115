// Starting the products of this folder.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "backend/cuda/hopper/launched.h"
#include "backend/cuda/hopper/store_tile.cuh"
#include "backend/cuda/hopper/tensor_map.h"

namespace cachalot::cuda::hopper {

// D [parts, rows, cols] as warps store it; width: columns of a warp's piece.
template <Out O>
OutMatrix out_matrix(void* d, int64_t rows, int64_t cols, int64_t ld, int64_t parts, int width, bool add) {
  constexpr int kSize = O == Out::bf16 ? 2 : 4, kSlab = 128 / kSize;
  OutMatrix out{.data = d, .ld = ld, .cols = int(cols), .rows = int(rows), .add = add};
  Boxes boxes{.data = d,
              .dtype = O == Out::bf16 ? DType::bf16 : DType::f32,
              .dimensions = 3,
              .size = {cols, rows, parts},
              .stride = {0, ld * kSize, rows * ld * kSize},
              .box = {kSlab, 16, 1}};
  out.slab = tensor_map(boxes);
  if (const int tail = width % kSlab; tail != 0) {
    boxes.box[0] = tail;
    boxes.swizzle = Swizzle::none;
    out.tail = tensor_map(boxes);
  }
  return out;
}

// A kernel of one operand structure, in clusters, as a dependent launch: it may set itself up while the
// kernel before it ends (barrier.cuh, previous_kernel_done).
template <class Operands> struct Clusters {
  void (*kernel)(Operands);
  int threads, size, shared;

  template <class Use> void with(int64_t clusters, cudaStream_t stream, Use use) const {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (size > 8) cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    cudaLaunchAttribute attributes[2]{};
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = unsigned(size);
    attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(unsigned(clusters * size));
    config.blockDim = dim3(unsigned(threads));
    config.dynamicSmemBytes = size_t(shared);
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = size > 1 ? 2 : 1;
    launched(use(config), "a product");
  }
  void operator()(int64_t clusters, const Operands& operands, cudaStream_t stream) const {
    with(clusters, stream,
         [&](const cudaLaunchConfig_t& c) { return cudaLaunchKernelEx(&c, kernel, operands); });
  }
};

// How many clusters of the kernel run at a time: multiprocessors come in groups that clusters do not span.
template <class Named, class Operands> int64_t room(const Clusters<Operands>& kernel, int blocks) {
  static const int64_t at_a_time = [&] {
    int count = blocks;
    if (kernel.size > 1)
      kernel.with(blocks / kernel.size, nullptr, [&](const cudaLaunchConfig_t& c) {
        return cudaOccupancyMaxActiveClusters(&count, kernel.kernel, &c);
      });
    return int64_t(std::clamp(count, 1, blocks / kernel.size));
  }();
  return at_a_time;
}

}  // namespace cachalot::cuda::hopper
