// Memory of the host for the devices that compute there (ref/, cpu/).
#pragma once

#include <cstdint>

namespace cachalot {

// What this process may still take: MemAvailable of /proc/meminfo, or less under a cgroup (containers).
int64_t host_free_bytes();
bool fits_host_memory(int64_t bytes);  // small requests are not compared

// 256-byte aligned; 0 bytes have an address, too. nullptr when it would not fit: Linux hands out more than
// there is and kills the process at the first touch, so large requests are compared with host_free_bytes()
// first. The block is exactly `bytes` long: AddressSanitizer sees the first byte beyond.
void* take_host_memory(int64_t bytes);
void give_host_memory(void* data) noexcept;

}  // namespace cachalot
