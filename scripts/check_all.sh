#!/usr/bin/env bash
# The long checks: every test under every sanitizer preset, and every fuzzer for FUZZ_SECONDS (default 60).
#   scripts/check_all.sh                  all of it: asan tsan fuzz
#   scripts/check_all.sh asan             some stages; there is also: tidy (clang-tidy)
#   FUZZ_SECONDS=600 scripts/check_all.sh fuzz
# Ends with a table; exits non-zero when anything failed. Corpora: tests/fuzz/<name> are the seeds and are
# only read; what a run adds is kept in build/fuzz/corpus/<name>, inputs that crash in build/fuzz/crashes/.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null

fuzz_seconds=${FUZZ_SECONDS:-60}
stages=("$@")
((${#stages[@]})) || stages=(asan tsan fuzz)
scripts/setup.sh --checks || exit 1

rows=() failed=0
check() {  # name, command...
  local name=$1 start=$SECONDS result=ok
  shift
  printf '\n==== %s ====\n' "$name"
  "$@" || { result=FAILED; failed=1; }
  rows+=("$(printf '%-24s %-7s %5d s' "$name" "$result" $((SECONDS - start)))")
}

sanitizer() {  # preset
  cmake --preset "$1" -Wno-dev && cmake --build --preset "$1" || return
  # g++ 12's ThreadSanitizer cannot place its shadow under the address randomisation of newer kernels.
  local run=()
  setarch -R true 2>/dev/null && run=(setarch -R)
  "${run[@]}" ctest --preset "$1"
}

fuzzers=()
while read -r source; do fuzzers+=("$(basename "$source" .cc)"); done < <(find cachalot -name '*_fuzz.cc' | sort)

build_fuzzers() { cmake --preset fuzz -Wno-dev && cmake --build --preset fuzz --target "${fuzzers[@]}"; }

fuzz() {  # name of a fuzzer
  local name=${1%_fuzz} program corpus
  program=$(find build/fuzz -name "$1" -type f -executable | head -n 1)
  [[ -n $program ]] || { echo "$1 was not built"; return 1; }
  corpus=build/fuzz/corpus/$name
  mkdir -p "$corpus" build/fuzz/crashes
  local seeds=() log=build/fuzz/$1.log
  [[ -d tests/fuzz/$name ]] && seeds=("tests/fuzz/$name")
  if "$program" -max_total_time="$fuzz_seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix="build/fuzz/crashes/$name-" "$corpus" "${seeds[@]}" >"$log" 2>&1; then
    grep -aE '^stat::(number_of_executed_units|new_units_added|peak_rss_mb)' "$log"
  else
    grep -aE -A 25 '^==|ERROR|SUMMARY|terminate|CHECK|deadly' "$log" | head -n 80
    return 1
  fi
}

tidy() {
  cmake --preset cpu -Wno-dev >/dev/null || return
  run-clang-tidy-19 -quiet -p build/cpu "$PWD/cachalot/.*(?<!_test)\.cc$" 2>/dev/null |
    grep -vE '^(clang-tidy|\[[ 0-9/]+\])|^$'
  return "${PIPESTATUS[0]}"
}

for stage in "${stages[@]}"; do
  case "$stage" in
    asan | tsan) check "cpu-$stage" sanitizer "cpu-$stage" ;;
    tidy) check clang-tidy tidy ;;
    fuzz)
      check "build fuzzers" build_fuzzers
      for fuzzer in "${fuzzers[@]}"; do check "$fuzzer" fuzz "$fuzzer"; done
      ;;
    *) echo "check_all: no stage \"$stage\"; there are: asan tsan fuzz tidy" >&2; exit 1 ;;
  esac
done

printf '\n%s, %s\n' "$(date -u +%F)" "$(git rev-parse --short HEAD 2>/dev/null || echo 'no commit')"
printf '%s\n' "${rows[@]}"
exit "$failed"
