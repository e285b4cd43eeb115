#!/usr/bin/env bash
# Installs what cachalot needs to build on Debian 12, and only what is missing. Safe to run again.
#   scripts/setup.sh            compiler, CMake, libraries
#   scripts/setup.sh --checks   also what scripts/check_all.sh needs: clang 19 with its sanitizer runtimes, Chromium
#   scripts/setup.sh --cross    also what scripts/check_cross.sh needs: qemu, a compiler for 64-bit ARM
set -euo pipefail

# package | what it provides: a command, or a header below one of the include folders
needs=(
  "g++|g++" "cmake|cmake" "ninja-build|ninja" "ccache|ccache" "pkg-config|pkg-config" "python3|python3"
  "nlohmann-json3-dev|nlohmann/json.hpp" "libfmt-dev|fmt/format.h" "libcli11-dev|CLI/CLI.hpp"
  "libpcre2-dev|pcre2.h" "zlib1g-dev|zlib.h" "libzstd-dev|zstd.h"
  "libgtest-dev|gtest/gtest.h" "libgmock-dev|gmock/gmock.h"
)
checks=("chromium|chromium" "clang-19|clang++-19" "clang-tidy-19|clang-tidy-19" "clang-format-19|clang-format-19"
        "libclang-rt-19-dev|/usr/lib/llvm-19/lib/clang/19/lib/linux/libclang_rt.fuzzer-$(uname -m).a")

cross=("qemu-user|qemu-aarch64" "g++-aarch64-linux-gnu|aarch64-linux-gnu-g++"
       "googletest|/usr/src/googletest/CMakeLists.txt")

case "${1:-}" in
  "") ;;
  --checks) needs+=("${checks[@]}") ;;
  --cross) needs+=("${cross[@]}") ;;
  *) echo "usage: scripts/setup.sh [--checks | --cross]" >&2; exit 1 ;;
esac

present() {  # command, header or absolute path
  case "$1" in
    /*) [[ -e $1 ]] ;;
    *.h | *.hpp) [[ -e /usr/include/$1 || -e /usr/local/include/$1 ]] ;;
    *) command -v "$1" >/dev/null ;;
  esac
}

missing=()
for need in "${needs[@]}"; do present "${need#*|}" || missing+=("${need%%|*}"); done
if ((${#missing[@]} == 0)); then
  echo "setup: everything needed is installed"
  exit 0
fi
echo "setup: missing ${missing[*]}"

if ! command -v apt-get >/dev/null; then
  echo "setup: this is not Debian; install what provides these with your own package manager" >&2
  exit 1
fi
as_root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null; then
    echo "setup: not root, and there is no sudo. As root: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  echo "setup: asking for sudo to install them"
  sudo -v
  as_root=(sudo)
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@" \
    </dev/null >>"$log" 2>&1
}
install() { apt install -y --no-install-recommends "${missing[@]}"; }

echo "setup: installing them with apt-get"
if ! install; then
  echo "setup: refreshing apt's package lists first"
  if ! apt update || ! install; then
    tail -n 20 "$log" >&2
    echo "setup: apt-get failed (above). Missing: ${missing[*]}" >&2
    exit 1
  fi
fi
echo "setup: done"
