// Operations recorded from a stream as a CUDA graph. Everything a graph touches has a fixed address: tensors
// of the caller, the workspace of the stream.
#include "backend/cuda/cuda_backend.h"

namespace cachalot::cuda {

namespace {

class CudaGraph : public Graph {
 public:
  explicit CudaGraph(cudaGraph_t recorded) {
    const cudaError_t code = cudaGraphInstantiate(&graph_, recorded, 0);
    cudaGraphDestroy(recorded);
    must(code, "instantiating a graph");
  }
  ~CudaGraph() override {
    cudaGraphExecDestroy(graph_);
    cudaGetLastError();
  }
  cudaGraphExec_t get() const { return graph_; }

 private:
  cudaGraphExec_t graph_ = nullptr;
};

}  // namespace

GraphPtr CudaBackend::capture(const std::function<void()>& work) {
  select();
  // Relaxed: what another thread does with the card meanwhile is its own business.
  must(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed), "recording a graph");
  cudaGraph_t recorded = nullptr;
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(stream_, &recorded);
    if (recorded) cudaGraphDestroy(recorded);
    cudaGetLastError();
    throw;
  }
  must(cudaStreamEndCapture(stream_, &recorded), "recording a graph");
  return std::make_shared<CudaGraph>(recorded);
}

void CudaBackend::replay(const GraphPtr& graph) {
  select();
  const auto* recorded = dynamic_cast<const CudaGraph*>(graph.get());
  CHECK(recorded, "a graph of another kind of device");
  must(cudaGraphLaunch(recorded->get(), stream_), "launching a graph");
}

}  // namespace cachalot::cuda
