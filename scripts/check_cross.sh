#!/usr/bin/env bash
# Processors that are not at hand, under emulation:
#   x86      the program of the preset cpu on a processor without AVX, and on one with AVX2 only: it must choose
#            other kernels, and its products must be right
#   aarch64  a build for 64-bit ARM (portable kernels): tests of the lower layers, and the same tokens from a model
# Emulated tests are one thread each, so the two processors are tested beside the build for ARM; what each part
# said is printed when it has ended.
# Usage: scripts/check_cross.sh [x86] [aarch64]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null

parts=("$@")
((${#parts[@]})) || parts=(x86 aarch64)
for part in "${parts[@]}"; do
  [[ $part == x86 || $part == aarch64 ]] || { echo "usage: scripts/check_cross.sh [x86] [aarch64]" >&2; exit 1; }
done
scripts/setup.sh --cross
# A product, an operation of each kind and the choice of kernels: emulation is some 20 times slower. Transposed codes
# are written by code that is the same for all kernels; ./test proves it with every set of them.
small='CpuDevice.*:CpuKernels.*:CpuIsa.*:CpuVectors.ProductsOfEveryShape:CpuVectors.Softened*:Gemm.NothingToSum*'
small+=':Gemm.SlicesOf*:RmsNorm.*:Swiglu.*-*LargeShapes*:*Transposes*:CpuIsa.PeaksAreMeasured'

cmake --preset cpu -Wno-dev >/dev/null
cmake --build --preset cpu --target cachalot

emulated() {  # processor as qemu calls it, program, arguments; without what qemu says of features that it lacks
  qemu-x86_64 -cpu "$@" 2> >(grep -v "TCG doesn't support" >&2)
}

x86() {  # processor, kernels that the program must choose there
  local out
  out=$(emulated "$1" build/cpu/cachalot doctor)
  if ! grep -qE "products run on $2(,|$)" <<<"$out"; then
    printf '%s\nexpected the kernels %s of the processor %s\n' "$out" "$2" "$1"
    return 1
  fi
  echo "the kernels of $1 are $2"
  emulated "$1" build/cpu/bin/backend_test --gtest_brief=1 --gtest_filter="$small"
}

# It takes times, a hundredth of a second each: before the other parts begin, and again when somebody else's
# work came between.
peaks() {  # processor
  local i
  for i in {1..10}; do
    ! emulated "$1" build/cpu/bin/backend_test --gtest_brief=1 --gtest_filter=CpuIsa.PeaksAreMeasured || return 0
    sleep 1
  done
  return 1
}

aarch64() {
  local arm=(qemu-aarch64 -L /usr/aarch64-linux-gnu) here there
  cmake --preset aarch64 -Wno-dev >/dev/null
  cmake --build --preset aarch64 --target cachalot base_test tensor_test
  "${arm[@]}" build/aarch64/cachalot doctor
  # What /proc/cpuinfo says under emulation is of the machine outside.
  CACHALOT_SOURCE=$PWD "${arm[@]}" build/aarch64/bin/base_test --gtest_brief=1 \
    --gtest_filter='-CpuFeatures.OfThisMachineAgreeWithTheKernelsList'
  "${arm[@]}" build/aarch64/bin/tensor_test --gtest_brief=1
  # The whole program: the golden model continues as it does here.
  local generate=(generate --model tests/golden/nano/model --tokens 5,17,3 --max-new-tokens 8 --temperature 0
                  --precision f32 --ignore-eos)
  here=$(build/cpu/cachalot "${generate[@]}" 2>/dev/null)
  there=$("${arm[@]}" build/aarch64/cachalot "${generate[@]}" 2>/dev/null)
  echo "tokens here $here, on 64-bit ARM $there"
  [[ -n $here && $here == "$there" ]]
}

logs=$(mktemp -d)
names=() pids=()
stop() {
  ((${#pids[@]} == 0)) || kill "${pids[@]}" 2>/dev/null || true
  rm -rf "$logs"
}
trap stop EXIT
start() {  # name, command...: in a shell of its own, which ends at the first error
  local name=$1
  shift
  (set -e; "$@") >"$logs/$name" 2>&1 &
  names+=("$name") pids+=($!)
}
for part in "${parts[@]}"; do
  case $part in
    x86)
      cmake --build --preset cpu --target backend_test
      peaks Nehalem
      peaks Haswell
      start Nehalem x86 Nehalem sse2
      start Haswell x86 Haswell avx2
      ;;
    aarch64) start aarch64 aarch64 ;;
  esac
done
failed=0
for i in "${!names[@]}"; do
  result=ok
  wait "${pids[i]}" || result=FAILED failed=1
  printf '\n-- %s: %s\n' "${names[i]}" "$result"
  cat "$logs/${names[i]}"
done
pids=()
exit "$failed"
