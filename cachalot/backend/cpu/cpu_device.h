// The CPU as a device: host memory, one thread pool, streams that are done when a call returns.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace cachalot {

// How much work, in nanoseconds, is worth waking the threads for: a thread that sleeps comes 5 us later on one
// machine and 60 us on another (base/thread_pool.h), so it is measured, in some 3 ms, when the device opens.
// What a number of threads computes has the same bits, so nothing but time depends on it. Operations guess
// their work by the speed of one AVX-512 core.
inline constexpr double kMeasured = -1;

// threads 0: all that the machine and the container allow. The environment variable CACHALOT_ISA (sse2,
// avx2, avx512, avx512_bf16, amx) forces another instruction set than the best; an unknown one, or one that
// this machine lacks, throws Error. amx_emulated, for tests, runs the loops of amx anywhere, slowly.
std::unique_ptr<Device> open_cpu_device(int threads, double worth_waking = kMeasured);

namespace cpu {
struct Context;
}
// What the streams of a cpu device share; nullptr for any other device.
cpu::Context* cpu_context(Device& device);

}  // namespace cachalot
