#!/usr/bin/env bash
# Tests and measures cachalot on a machine with an NVIDIA GPU: what CI, which has none, cannot do.
#   scripts/gpu_check.sh                        builds the preset cuda, then everything below
#   scripts/gpu_check.sh --build build/cuda     takes a finished build (the folder that holds `cachalot`)
#   scripts/gpu_check.sh tests ops              some stages: tests portable goldens ops gemm kernels attention train
#                                               decode layer peer_kernels peer_layer peer_model sanitize sanitize_portable
#   scripts/gpu_check.sh --out DIR              where results go (default build/gpu_check)
# All but the last two run when none is named, on the first card of CUDA_VISIBLE_DEVICES. With several cards, stages can
# run side by side, each call with a card and a DIR of its own; scripts/gpu_tables.py puts the records together.
# `portable` is the tests again with the kernels of older cards (CACHALOT_CUDA_KERNELS). The peer is PyTorch with
# transformers; without them (python3 -c 'import torch, transformers') its rows stay empty. In `attention` the peer
# (cuDNN) and cachalot take turns on the card; `kernels` and `peer_kernels` are their products.
# Results: DIR/report.json (device, driver, clocks, power, energy, peak memory, date, commit or what CACHALOT_COMMIT
# says, ours, the peer's, ceilings), written after every stage, so a run that is cut short keeps what it measured;
# DIR/performance.md (rows for docs/performance.md), DIR/<stage>.log. Exits 1 when a test failed, 2 when there is
# nothing to test on.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null
export CACHALOT_SOURCE=$PWD

build="" out=build/gpu_check stages=()
while (($#)); do
  case $1 in
    --build) build=${2:?--build needs a folder}; shift 2 ;;
    --out) out=${2:?--out needs a folder}; shift 2 ;;
    -h | --help) sed -n '2,18s/^# \{0,1\}//p' "$0"; exit 0 ;;
    tests | portable | goldens | ops | gemm | kernels | attention | train | decode | layer | peer_kernels | \
      peer_layer | peer_model | sanitize | sanitize_portable) stages+=("$1"); shift ;;
    *) echo "gpu_check: no option or stage \"$1\" (scripts/gpu_check.sh --help)" >&2; exit 2 ;;
  esac
done
((${#stages[@]})) || \
  stages=(tests portable goldens ops gemm kernels peer_kernels attention train decode layer peer_layer peer_model)
wants() { [[ " ${stages[*]} " == *" $1 "* ]]; }
stop() { echo "gpu_check: $1" >&2; [[ -n ${2:-} ]] && echo "  try: $2" >&2; exit 2; }

# What the machine has, before anything is built.
command -v nvidia-smi >/dev/null || stop "no NVIDIA driver on this machine (nvidia-smi is not in PATH)" \
  "run it on a machine with a GPU; in a container, start it with the GPUs passed through"
card=${CUDA_VISIBLE_DEVICES:-0} card=${card%%,*}
gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit,compute_cap \
  --format=csv,noheader,nounits -i "$card" 2>/dev/null) || stop "the driver shows no GPU" "nvidia-smi says why"
IFS=',' read -r card_name driver memory clock memory_clock power_limit capability <<<"${gpu//, /,}"
[[ ${capability%%.*} -ge 8 ]] || stop "$card_name has compute capability $capability; 8.0 (Ampere) is the oldest that runs"
echo "gpu        $card_name, driver $driver, $memory MiB, $clock MHz, compute capability $capability"

if [[ -z $build ]]; then
  build=build/cuda
  cmake --preset cuda -Wno-dev >/dev/null && cmake --build --preset cuda -j"$(nproc)" || stop "the build failed"
fi
[[ -x $build/cachalot ]] || stop "$build holds no program cachalot" "scripts/gpu_check.sh without --build"
cachalot=$build/cachalot
mkdir -p "$out/parts" || exit 2
rm -f "$out"/parts/* "$out"/*.log "$out"/{report.json,performance.md}
"$cachalot" doctor --gpu-test >"$out/doctor.log" 2>&1 || { cat "$out/doctor.log"; stop "the GPU test of doctor failed"; }
sed -n '/^.. *gpu/,/^.. *mpi/p' "$out/doctor.log" | sed '$d'

# Power, clocks and memory while a stage runs, five times a second.
meter=""
start_meter() {
  nvidia-smi --query-gpu=power.draw,clocks.sm,memory.used --format=csv,noheader,nounits -i "$card" -lms 200 \
    >"$out/parts/$1.meter" 2>/dev/null &
  meter=$!
}
stop_meter() { kill "$meter" 2>/dev/null; wait "$meter" 2>/dev/null; meter=""; }
end() {
  [[ -n $meter ]] && kill "$meter" 2>/dev/null
  [[ -n ${cut:-} ]] && write_record  # with what the stage under way has measured
}
trap end EXIT
trap 'cut=yes; exit 143' INT TERM

commit=${CACHALOT_COMMIT:-}
if [[ -z $commit ]]; then
  commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
  git diff --quiet HEAD 2>/dev/null || commit+=" with changes"
fi
write_record() {  # one JSON object, put together from the parts, and the tables made of it
  local separator="" f
  {
    printf '{"date":"%s","commit":"%s","device":"%s","driver":"%s","memory_mib":%s,"max_sm_mhz":%s,"max_memory_mhz":%s,"power_limit_watts":%s' \
      "$(date -u +%FT%TZ)" "$commit" "$card_name" "$driver" "$memory" "$clock" "$memory_clock" "${power_limit%.*}"
    printf ',"stages":['
    for f in "$out"/parts/*.stage; do [[ -f $f ]] && { printf '%s' "$separator"; cat "$f"; separator=,; }; done
    printf ']'
    for f in "$out"/parts/*.json; do [[ -s $f ]] && { printf ',"%s":' "$(basename "$f" .json)"; cat "$f"; }; done
    printf '}\n'
  } >"$out/report.json"
  command -v python3 >/dev/null && python3 scripts/gpu_tables.py "$out/report.json" >"$out/performance.md"
}

rows=() failed=0
stage() {  # name, command...: into DIR/name.log, measured
  local name=$1 begin=$SECONDS result=ok
  shift
  printf '\n==== %s ====\n' "$name"
  start_meter "$name"
  "$@" >"$out/$name.log" 2>&1 || { result=FAILED failed=1; }
  stop_meter
  awk -F', *' -v name="$name" -v result="$result" -v seconds=$((SECONDS - begin)) '
    { n++; power += $1; if ($1 > most) most = $1; if ($2 > clock) clock = $2; if ($3 > memory) memory = $3 }
    END { n += n == 0
          printf "{\"stage\":\"%s\",\"result\":\"%s\",\"seconds\":%d,\"mean_watts\":%.0f,\"peak_watts\":%.0f,", \
                 name, result, seconds, power / n, most
          printf "\"energy_joules\":%.0f,\"sm_mhz\":%d,\"peak_memory_mib\":%d}", power / n * seconds, clock, memory }
  ' "$out/parts/$name.meter" >"$out/parts/$name.stage"
  rows+=("$(printf '%-17s %-7s %5d s' "$name" "$result" $((SECONDS - begin)))")
  write_record
  if [[ $result == ok ]]; then tail -n "${tail:-3}" "$out/$name.log"
  else grep -aE 'FAILED|Failure|rror|findings,|failed:|timed out' "$out/$name.log" | head -n 20; tail -n 5 "$out/$name.log"; fi
}

run_tests() {  # folders: the programs whose tests open a GPU, each cut into parts that run side by side
  local folder program i parts=8 pids status=0
  for folder; do
    program=$build/bin/${folder}_test
    [[ -x $program ]] || { echo "$program is missing"; status=1; continue; }
    pids=()
    for ((i = 0; i < parts; i++)); do
      GTEST_TOTAL_SHARDS=$parts GTEST_SHARD_INDEX=$i "$program" --gtest_brief=1 >"$out/parts/test.$i" 2>&1 & pids+=($!)
    done
    for ((i = 0; i < parts; i++)); do
      wait "${pids[i]}" || { status=1; echo "-- $(basename "$program"), part $i of $parts"; cat "$out/parts/test.$i"; }
    done
    echo "-- $(basename "$program"): $(cat "$out"/parts/test.* | awk '/PASSED/ { n += $4 } END { print n + 0 }') passed"
  done
  return $status
}
run_portable() {
  export CACHALOT_CUDA_KERNELS=portable CACHALOT_TEST_DEVICE=cuda
  run_tests backend nn model infer train
  local status=$?
  unset CACHALOT_CUDA_KERNELS CACHALOT_TEST_DEVICE
  return $status
}
run_goldens() { [[ -x $build/bin/model_test ]] && "$build/bin/model_test" --gtest_brief=1 --gtest_filter='*Golden*'; }
bench() {  # what is added to the report, then bench's arguments
  local part=$1
  shift
  "$cachalot" bench "$@" --device cuda --json "$out/parts/$part.json"
}
run_train() {
  bench train train --config configs/v3-1b.json --lines 20 &&
    bench train_fp8 train --config configs/v3-1b.json --lines 20 --precision fp8
}
run_layer() {
  local layer="layer --config configs/v3-layer.json --lines 12"
  bench layer $layer && bench layer_fp8 $layer --precision fp8 &&
    bench layer_rank $layer --precision fp8 --ranks 64
}
run_decode() {
  local n
  for n in 1 128; do
    bench "decode_$n" decode --config configs/v3-1b.json --sequences $n --new-tokens 64 --seconds 1 --lines 30 || return
  done
}
run_attention() {
  local turn
  for turn in 1 2; do
    bench "attention_$turn" attention --seconds 0.3 || return
    [[ -z $peer ]] && continue
    python3 scripts/bench_torch.py --parts attention --json "$out/parts/peer_attention_$turn.json" || return
  done
}
run_peer_kernels() { python3 scripts/bench_torch.py --parts products --json "$out/parts/peer_kernels.json"; }
run_peer_layer() {
  python3 scripts/bench_transformers.py --config configs/v3-layer.json --device cuda --parts layer --seconds 2 \
    --json "$out/parts/peer_layer.json"
}
run_peer_model() {
  python3 scripts/bench_transformers.py --config configs/v3-1b.json --device cuda --parts decode,train \
    --sequences 1,128 --json "$out/parts/peer_model.json"
}
run_sanitize() {  # the name of the stage, more arguments
  local part=$1
  shift
  command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not in PATH"; return 1; }
  python3 scripts/gpu_sanitize.py "$build/bin/backend_test" --json "$out/parts/$part.json" --keep "$out/$part" "$@"
}

peer=""
if wants attention || wants peer_kernels || wants peer_layer || wants peer_model; then
  if python3 -c 'import torch, transformers; assert torch.cuda.is_available()' 2>/dev/null; then peer=yes
  else printf '\n==== peer ====\nleft out: python3 has no torch with CUDA and transformers\n'; fi
fi

wants tests && stage tests run_tests backend nn model infer train
wants portable && tail=4 stage portable run_portable
wants goldens && stage goldens run_goldens
wants ops && tail=60 stage ops bench ops ops
wants gemm && tail=9 stage gemm bench gemm gemm
wants kernels && tail=90 stage kernels bench kernels products
wants attention && tail=30 stage attention run_attention
wants train && tail=60 stage train run_train
wants decode && tail=40 stage decode run_decode
wants layer && tail=60 stage layer run_layer
wants peer_kernels && [[ -n $peer ]] && tail=60 stage peer_kernels run_peer_kernels
wants peer_layer && [[ -n $peer ]] && tail=4 stage peer_layer run_peer_layer
wants peer_model && [[ -n $peer ]] && tail=4 stage peer_model run_peer_model
wants sanitize && stage sanitize run_sanitize sanitize
wants sanitize_portable && stage sanitize_portable run_sanitize sanitize_portable --portable

[[ -s $out/performance.md ]] && printf '\n' && cat "$out/performance.md"
printf '\n'
printf '%s\n' "${rows[@]}"
echo "written: $out/report.json$([[ -s $out/performance.md ]] && echo ", $out/performance.md")"
exit $failed
