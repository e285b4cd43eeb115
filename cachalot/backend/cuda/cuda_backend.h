// Operations on one stream of one NVIDIA GPU. A call queues kernels and returns; nothing here allocates or
// waits after the stream is open. Kernels that need memory of their own take it from the stream's workspace,
// whose size is fixed: operations are cut to fit it.
//
// Determinism: no atomics on floats; sums are cut by shape and taken in order. The same card gives the same
// bits each time.
//
// Indices are device data that the host does not see. A kernel that meets one out of range writes it to its
// operation's fault word (faults.h), leaves out what it cannot do, and the next synchronize() throws.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/faults.cuh"
#include "backend/cuda/launch.cuh"
#include "base/error.h"

namespace cachalot {
struct MaskedGemm;
}

namespace cachalot::cuda {

// CUDA calls that a user's machine can make fail: no memory, a card in a bad state, a lost driver.
void must(cudaError_t code, const char* doing);

// After a launch: was it possible?
inline void launched(const char* op) { must(cudaGetLastError(), op); }

// Double precision is for ref, the oracle; a layer that asks for it here has the wrong device.
void require_no_f64(const char* op, std::initializer_list<const Tensor*> tensors);

struct Lane;       // a stream with its workspace and staging memory
struct BlasCalls;  // cuBLASLt's choice for every shape met so far

// What the streams of one device share.
struct Context {
  int device = 0;
  int multiprocessors = 0;
  int major = 0, minor = 0;
  int64_t l2_bytes = 0;

  // Lanes of closed streams: opening the next one takes microseconds.
  mutable std::mutex lanes_in_use;
  mutable std::vector<std::shared_ptr<Lane>> idle;
};

class CudaBackend : public Backend {
 public:
  static constexpr int64_t kWorkspace = int64_t(256) << 20;
  static constexpr int64_t kCounters = 4096;

  explicit CudaBackend(std::shared_ptr<const Context> context);
  ~CudaBackend() override;

  void upload(const void* host, Tensor dst) override;
  void download(Tensor src, void* host) override;
  void synchronize() override;
  EventPtr record() override;
  void wait(const EventPtr& e) override;
  GraphPtr capture(const std::function<void()>& work) override;
  void replay(const GraphPtr& graph) override;
  void fix_rows(bool fixed) override { rows_fixed_ = fixed; }

#define CACHALOT_DECLARE(name, Args) void name(const Args&) override;
  CACHALOT_OPS(CACHALOT_DECLARE)
#undef CACHALOT_DECLARE
  bool masked_gemm(const MaskedGemm& g);  // backend/masked_gemm.h

 private:
  void plain(const Gemm& g);
  bool deep_product(const Gemm& g);  // false: not that kind, nothing was done
  bool wide_product(const Gemm& g);
  void quantized_swiglu(const SwigluForward& g);
  void quantized_swiglu(const SwigluBackward& g);
  void select() const;  // this card for the calling thread; every operation begins with it
  void deliver();       // waits, and fills the host memory of downloads that are under way

  std::shared_ptr<const Context> context_;
  std::shared_ptr<Lane> lane_;
  cudaStream_t stream_ = nullptr;
  Queue queue_;                   // the same, for launches that may overlap
  void* workspace_ = nullptr;     // kWorkspace bytes; an operation owns it while it runs
  uint32_t* counters_ = nullptr;  // kCounters of them, zero between operations
  cublasLtHandle_t blas_ = nullptr;
  std::shared_ptr<BlasCalls> calls_;
  Faults faults_;
  bool rows_fixed_ = false;  // see fix_rows: products of one kind only, whatever the number of rows
};

}  // namespace cachalot::cuda
