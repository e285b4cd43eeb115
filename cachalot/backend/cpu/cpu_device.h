// The CPU as a device: host memory, one thread pool, streams that are done when a call returns.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace cachalot {

// A call that wakes threads costs the caller some 4 us, and they come 5 to 50 us later
// (base/thread_pool.h): less work than this stays with the caller. Operations guess their work by the speed
// of one AVX-512 core.
inline constexpr double kWorthWaking = 30e3;  // nanoseconds

// threads 0: all that the machine and the container allow. The environment variable CACHALOT_ISA (sse2,
// avx2, avx512, avx512_bf16, amx) forces another instruction set than the best; an unknown one, or one that
// this machine lacks, throws Error. amx_emulated, for tests, runs the loops of amx anywhere, slowly.
std::unique_ptr<Device> open_cpu_device(int threads, double worth_waking = kWorthWaking);

namespace cpu {
struct Context;
}
// What the streams of a cpu device share; nullptr for any other device.
cpu::Context* cpu_context(Device& device);

}  // namespace cachalot
