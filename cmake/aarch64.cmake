# Builds for 64-bit ARM on another machine (Debian's g++-aarch64-linux-gnu); its programs run here under
# qemu-aarch64. preset "aarch64".
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)
file(GLOB fmt_DIR /usr/lib/*/cmake/fmt)  # only its headers are used
