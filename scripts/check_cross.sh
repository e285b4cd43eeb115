#!/usr/bin/env bash
# Processors that are not at hand, under emulation:
#   x86      the program of the preset cpu on a processor without AVX, and on one with AVX2 only: it must choose
#            other kernels, and its products must be right
#   aarch64  a build for 64-bit ARM (portable kernels): tests of the lower layers, and the same tokens from a model
# Usage: scripts/check_cross.sh [x86] [aarch64]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null

parts=("$@")
((${#parts[@]})) || parts=(x86 aarch64)
scripts/setup.sh --cross
# A product, an operation of each kind and the choice of kernels: emulation is some 20 times slower.
small='CpuDevice.*:CpuKernels.*:CpuIsa.*:CpuVectors.ProductsOfEveryShape:CpuVectors.Softened*:Gemm.NothingToSum*:Gemm.SlicesOf*:RmsNorm.*:Swiglu.*'

expect_kernels() {  # name of the kernels, command...
  local kernels=$1 out
  shift
  out=$("$@" doctor)
  if ! grep -qE "products run on $kernels(,|$)" <<<"$out"; then
    printf '%s\nexpected the kernels %s of: %s\n' "$out" "$kernels" "$*" >&2
    return 1
  fi
  echo "$kernels: $*"
}

cmake --preset cpu -Wno-dev >/dev/null
cmake --build --preset cpu --target cachalot

for part in "${parts[@]}"; do
  case $part in
    x86)
      cmake --build --preset cpu --target backend_test
      expect_kernels sse2 qemu-x86_64 -cpu Nehalem build/cpu/cachalot
      expect_kernels avx2 qemu-x86_64 -cpu Haswell build/cpu/cachalot
      for cpu in Nehalem Haswell; do
        qemu-x86_64 -cpu "$cpu" build/cpu/bin/backend_test --gtest_brief=1 --gtest_filter="$small"
      done
      ;;
    aarch64)
      cmake --preset aarch64 -Wno-dev >/dev/null
      cmake --build --preset aarch64 --target cachalot base_test tensor_test
      arm=(qemu-aarch64 -L /usr/aarch64-linux-gnu)
      "${arm[@]}" build/aarch64/cachalot doctor
      # What /proc/cpuinfo says under emulation is of the machine outside.
      CACHALOT_SOURCE=$PWD "${arm[@]}" build/aarch64/bin/base_test --gtest_brief=1 \
        --gtest_filter='-CpuFeatures.OfThisMachineAgreeWithTheKernelsList'
      "${arm[@]}" build/aarch64/bin/tensor_test --gtest_brief=1
      # The whole program: the golden model continues as it does here.
      generate=(generate --model tests/golden/nano/model --tokens 5,17,3 --max-new-tokens 8 --temperature 0
                --precision f32 --ignore-eos)
      here=$(build/cpu/cachalot "${generate[@]}" 2>/dev/null)
      there=$("${arm[@]}" build/aarch64/cachalot "${generate[@]}" 2>/dev/null)
      echo "tokens here $here, on 64-bit ARM $there"
      [[ -n $here && $here == "$there" ]]
      ;;
    *) echo "usage: scripts/check_cross.sh [x86] [aarch64]" >&2; exit 1 ;;
  esac
done
