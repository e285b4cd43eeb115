// For the tests of operations: one body runs on ref, the oracle, and on every device under test, and what it
// returns is compared.
//
//   expect_like_ref([](Bench& b) -> Outputs {            // the same numbers on every device
//     Tensor x = b.t.normal(DType::bf16, 5, 3), y = b.t.garbage(DType::bf16, 5, 3);
//     on(b.s).cast({.x = x, .y = y});
//     return {y};
//   });
//
// Proved of every output: it meets the metric of its format (indices, codes with their scales: is equal);
// nothing was written behind its rows; with 2, 3 and 5 threads it has the bits that one thread gives; and
// where there is a GPU, it gives the same bits twice.
#pragma once

#include <bit>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/cpu/cpu_device.h"
#include "backend/cuda/cuda.h"
#include "backend/testing.h"

namespace cachalot::testing {

// A device as a test sees it. `t` begins the same sequence of numbers in every Bench.
struct Bench {
  explicit Bench(Device& device, uint64_t seed = 1) : device(device), s(device), t(device, s, seed) {}
  Device& device;
  Stream s;
  TestTensors t;
};

// CACHALOT_ISA for as long as the object lives.
class ForcedIsa {
 public:
  explicit ForcedIsa(const std::string& isa) {
    if (const char* before = std::getenv("CACHALOT_ISA")) before_ = before, had_ = true;
    setenv("CACHALOT_ISA", isa.c_str(), 1);
  }
  ~ForcedIsa() { had_ ? setenv("CACHALOT_ISA", before_.c_str(), 1) : unsetenv("CACHALOT_ISA"); }
  ForcedIsa(const ForcedIsa&) = delete;

 private:
  std::string before_;
  bool had_ = false;
};

struct TestedDevice {
  std::string name;
  std::unique_ptr<Device> device;
  int same_bits_as = -1;  // that one of the list
};

// The CPU with its best kernels on 1, 2, 3 and 5 threads that are woken for the smallest work, then with one
// thread and every other set of kernels that this machine runs; the first GPU where there is one, twice. With
// CACHALOT_TEST_DEVICE=cuda, or another name of the list, that one alone: a tool that watches the GPU
// (scripts/gpu_sanitize.py) need not wait for the CPU.
inline const std::vector<TestedDevice>& tested_devices() {
  static const std::vector<TestedDevice> devices = [] {
    std::vector<TestedDevice> list;
    for (const int threads : {1, 2, 3, 5})
      list.push_back(
          {fmt::format("cpu, {} threads", threads), open_cpu_device(threads, 0), threads > 1 ? 0 : -1});
    for (const char* isa : {"sse2", "avx2", "avx512", "avx512_bf16", "amx_emulated"}) {
      const ForcedIsa forced(isa);
      try {
        list.push_back({fmt::format("cpu, {}", isa), open_cpu_device(1, 0)});
      } catch (const Error&) {  // not of this machine
      }
    }
    if (const CudaStatus status = probe_cuda(); !status.devices.empty() && status.devices[0].usable()) {
      list.push_back({"cuda", open_device("cuda")});
      list.push_back({"cuda, again", open_device("cuda"), int(list.size()) - 1});
    }
    if (const char* only = std::getenv("CACHALOT_TEST_DEVICE")) {
      std::erase_if(list, [&](const TestedDevice& d) { return d.name != only; });
      CHECK(!list.empty(), fmt::format("CACHALOT_TEST_DEVICE: no \"{}\" on this machine", only));
      list[0].same_bits_as = -1;
    }
    return list;
  }();
  return devices;
}
inline Device& ref_device() {
  static const std::unique_ptr<Device> device = open_device("ref");
  return *device;
}

// numerics: what one operation may differ from ref by (docs/numerics.md).
inline double bound_of(DType format) { return format == DType::bf16 ? 1e-5 : 1e-12; }

// The same codes and the same scales, byte for byte.
inline void expect_same_codes(const Tensor& got, const Tensor& expected) {
  ASSERT_EQ(got.describe(), expected.describe());
  if (got.size() == 0) return;
  for (int64_t r = 0; r < got.rows; ++r)
    for (int64_t c = 0; c < got.cols; ++c) {
      const int64_t i = r * got.ld + c;
      const int x = static_cast<const e4m3*>(got.data)[i].bits,
                y = static_cast<const e4m3*>(expected.data)[i].bits;
      const uint32_t s = std::bit_cast<uint32_t>(got.scale(r, c)),
                     t = std::bit_cast<uint32_t>(expected.scale(r, c));
      ASSERT_TRUE(x == y && s == t) << fmt::format("({}, {}): code {:#x} scale {:#x}, not {:#x} and {:#x}", r,
                                                   c, x, s, y, t);
    }
}

using Outputs = std::vector<Tensor>;
using Body = std::function<Outputs(Bench&)>;

inline void expect_like_ref(const Body& body, const std::string& what = "") {
  const ScopedTrace trace(__FILE__, __LINE__, what);
  Bench oracle(ref_device());
  std::vector<HostTensor> expected;
  for (const Tensor& t : body(oracle)) expected.push_back(download(oracle.s, t));
  std::vector<std::vector<std::string>> bits;  // of each device, of each output
  for (const TestedDevice& tested : tested_devices()) {
    const ScopedTrace trace_device(__FILE__, __LINE__, tested.name);
    Bench bench(*tested.device);
    const Outputs outputs = body(bench);
    ASSERT_EQ(outputs.size(), expected.size());
    std::vector<std::string>& mine = bits.emplace_back();
    for (size_t i = 0; i < outputs.size(); ++i) {
      const ScopedTrace trace_output(__FILE__, __LINE__,
                                     fmt::format("output {} {}", i, outputs[i].describe()));
      const HostTensor got = download(bench.s, outputs[i]);
      EXPECT_TRUE(bench.t.padding_intact(outputs[i]));
      if (outputs[i].dtype == DType::i32) {
        EXPECT_EQ(read_indices(bench.s, outputs[i]),
                  std::vector<int32_t>(
                      static_cast<const int32_t*>(expected[i].tensor().data),
                      static_cast<const int32_t*>(expected[i].tensor().data) + got.tensor().size()));
      } else if (outputs[i].scales) {
        expect_same_codes(got, expected[i]);
      } else {
        EXPECT_METRIC(got, expected[i], bound_of(outputs[i].dtype));
      }
      mine.push_back(read_bits(bench.s, outputs[i]));
      if (tested.same_bits_as >= 0) {
        EXPECT_TRUE(mine[i] == bits[size_t(tested.same_bits_as)][i])
            << "other bits than " << tested_devices()[size_t(tested.same_bits_as)].name << " gives";
      }
    }
    if (Test::HasFailure()) return;  // the others would only repeat it
  }
}

// `fused` returns pairs: what an operation quantised, and the numbers it says to have quantised, which
// Quantize must turn into the same bytes. On ref and every device under test.
struct Fused {
  Tensor quantised, numbers;
  bool power_of_two = false;
};
inline void expect_fused(const std::function<std::vector<Fused>(Bench&)>& body,
                         const std::string& what = "") {
  const ScopedTrace trace(__FILE__, __LINE__, what);
  const auto run = [&](const std::string& name, Device& device) {
    const ScopedTrace trace_device(__FILE__, __LINE__, name);
    Bench b(device);
    for (const Fused& f : body(b)) {
      const Tensor apart = b.t.garbage_row_tiles(f.numbers.rows, f.numbers.cols);
      on(b.s).quantize({.x = f.numbers, .y = apart, .power_of_two = f.power_of_two});
      expect_same_codes(download(b.s, f.quantised), download(b.s, apart));
      EXPECT_TRUE(b.t.padding_intact(f.quantised));
    }
  };
  run("ref", ref_device());
  for (const TestedDevice& tested : tested_devices()) run(tested.name, *tested.device);
}

// `body` must be refused by every device under test with an InternalError that holds `text`.
inline void expect_refused(const std::function<void(Bench&)>& body, const std::string& text) {
  for (const TestedDevice& tested : tested_devices()) {
    Bench bench(*tested.device);
    try {
      body(bench);
      on(bench.s).synchronize();  // a GPU meets wrong indices only then
      ADD_FAILURE() << tested.name << " took it";
    } catch (const InternalError& e) {
      EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
    }
  }
}

}  // namespace cachalot::testing
