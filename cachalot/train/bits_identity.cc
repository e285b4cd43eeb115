#include "train/bits_identity.h"

#include <fmt/format.h>

#ifdef __GLIBC__
#include <gnu/libc-version.h>
#endif

#include "backend/cpu_kernel_set.h"
#include "base/cpu.h"
#include "data/checksum.h"

namespace cachalot {

namespace {

std::string arithmetic_of(Device& device) {
  if (std::string text = cpu_kernel_set(device); !text.empty()) {
    if (cpu_features().fma) text += ", fma";  // the C library's functions use it where there is one
#ifdef __GLIBC__
    text += fmt::format(", glibc {}", gnu_get_libc_version());
#endif
    return text;
  }
  // "cuda:1 (NVIDIA H200)": which card of several does not matter.
  const std::string name = device.name();
  const size_t open = name.find('(');
  return name.starts_with("cuda") && open != std::string::npos && name.ends_with(')')
             ? name.substr(open + 1, name.size() - open - 2)
             : name;
}

}  // namespace

BitsIdentity BitsIdentity::of(Device& device) {
  return {.program = fmt::format("{:016x}", checksum_file("/proc/self/exe").checksum),
          .arithmetic = arithmetic_of(device)};
}

}  // namespace cachalot
