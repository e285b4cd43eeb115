#!/usr/bin/env python3
"""backend_test under compute-sanitizer, on the GPU alone: memcheck and synccheck over every operation, racecheck over
those whose kernels copy nothing asynchronously (the tool does not follow mbarriers and the copy engine).

A process for every line of output; suites that are new to this script get one each. Exits 1 unless all is clean.
"""
import argparse
import concurrent.futures
import json
import os
import re
import signal
import subprocess
import sys
import time

# Suites that put nothing on a GPU.
ELSEWHERE = re.compile(r"Cpu|Ref[A-Z]|Fake|Vectors|Arena|Buffer|Plan|HostMemory|EnergyMeter|Cost|Profile|Number|"
                       r"OpenDevice|Elementwise|Fp8Tiles|TestingTest|Cuda$")
# More memory than there is, which the tools report; what measures time; large shapes of what small ones cover.
LEFT_OUT = ["CudaDevice.MemoryIsAlignedAndTooMuchIsRefusedWithNumbers", "CudaDevice.AnotherStreamWaits*",
            "RmsNorm.*LargeShapes*"]
# Small suites that share a process, and long ones that are cut into parts.
TOGETHER = [["AdamW", "SumSquares", "Add", "Cast", "Fill"],
            ["Gate", "BalanceLoss", "CountGroups", "GateBackward", "UpdateGateBias"],
            ["Permute", "Unpermute"], ["QuantizeWeight", "E5m6"], ["LatentAppend", "LatentGather"],
            ["GroupedGemm", "GroupedWeightGrad"]]
PARTS = {"Gemm": 5, "Attention": 4, "LatentAttention": 5, "HopperProducts": 5, "Fp8Product": 3, "Quantize": 3,
         "RmsNorm": 3, "Sample": 2, "CrossEntropy": 2, "Rows": 2, "GroupedGemm": 2}
# What racecheck follows. Attention and absorbed attention: the kernels for any format and width.
RACES = [(["AdamW.*", "SumSquares.*", "Add.*", "Cast.*", "Fill.*"], 1),
         (["Gate*.*", "BalanceLoss.*", "CountGroups.*", "UpdateGateBias.*"], 1),
         (["Permute.*", "Unpermute.*"], 1), (["Rows.*"], 2),
         (["RmsNorm.*"], 3), (["Rope.*"], 1), (["Swiglu.*"], 1), (["Quantize.*"], 3), (["QuantizeWeight.*"], 1),
         (["E5m6.*"], 1), (["Sample.*"], 2), (["NormGemm.*"], 1), (["LatentAppend.*", "LatentGather.*"], 1),
         (["Attention.ForwardAndBackward*", "Attention.WithoutRope*", "Attention.RowsOfNo*"], 1),
         (["LatentAttention.MeetsTheMetric*"], 1), (["Gemm.FewRows*"], 1)]


def jobs_of(program, tools):
    listed = subprocess.run([program, "--gtest_list_tests"], capture_output=True, text=True, check=True).stdout
    suites = [line.strip()[:-1] for line in listed.splitlines() if re.match(r"\w+\.\s*$", line)]
    suites = [s for s in suites if not ELSEWHERE.match(s)]
    groups = [[s for s in group if s in suites] for group in TOGETHER]
    groups = [g for g in groups if g] + [[s] for s in suites if not any(s in g for g in TOGETHER)]
    every = [([s + ".*" for s in g], PARTS.get(g[0], 1)) for g in groups]
    runs = [(parts, tool, filters) for tool in tools for filters, parts in (RACES if tool == "racecheck" else every)]
    for parts, tool, filters in sorted(runs, key=lambda run: -run[0]):  # the longest first
        for part in range(parts):
            yield {"tool": tool, "tests": ":".join(filters), "part": part + 1, "parts": parts}


def judge(job, text, status):
    """What the output of one process says."""
    job["passed"] = sum(int(n) for n in re.findall(r"\[  PASSED  \] (\d+) test", text))
    job["skipped"] = sum(int(n) for n in re.findall(r"\[  SKIPPED \] (\d+) test", text))
    errors = [int(n) for n in re.findall(r"ERROR SUMMARY: (\d+) error", text)]
    errors += [int(e) + int(w) for e, w in re.findall(r"RACECHECK SUMMARY: .*\((\d+) errors?, (\d+) warning", text)]
    job["findings"] = sum(errors)
    if job["findings"]:
        job["result"] = "findings"
        lines = [line.strip("= \t") for line in text.splitlines() if line.startswith("=====")]
        first = next((i for i, line in enumerate(lines) if re.match(
            r"Invalid|Barrier error|Error: |Warning: |Program hit|Unspecified|Misaligned|Out-of", line)), 0)
        end = next((i for i in range(first + 1, len(lines)) if lines[i].startswith("Saved host")), first + 4)
        frames = [line for line in lines[first:end] if line.startswith("Device Frame")] or lines[first + 1:first + 3]
        job["first"] = " | ".join([lines[first]] + frames[-1:] + lines[first + 1:first + 2])[:600]
    elif status is None:
        job["result"] = "timed out"
    elif status != 0 or not errors:
        job["result"] = "failed"
        failed = re.findall(r"^\[  FAILED  \] (\w+\.\w+) \(", text, re.M)
        at = text.find("Failure")
        job["first"] = (", ".join(failed) or f"exit status {status}") + ": " + " ".join(
            (text[at:] if at >= 0 else text[-400:]).split())[:400]
    else:
        job["result"] = "clean"


def run(job, options, deadline):
    begin = time.time()
    left = options.limit if deadline is None else min(options.limit, deadline - begin)
    if left <= 0:
        return {**job, "result": "not run", "seconds": 0}
    environment = {**os.environ, "CACHALOT_TEST_DEVICE": "cuda", "GTEST_TOTAL_SHARDS": str(job["parts"]),
                   "GTEST_SHARD_INDEX": str(job["part"] - 1)}
    command = ["compute-sanitizer", "--tool", job["tool"], "--error-exitcode", "9", "--print-limit", "10",
               options.program, "--gtest_brief=1", "--gtest_filter=" + job["tests"] + "-" + ":".join(LEFT_OUT)]
    child = subprocess.Popen(command, env=environment, text=True, errors="replace", stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, start_new_session=True)
    try:
        text, status = child.communicate(timeout=left)[0], child.returncode
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        text, status = child.communicate()[0], None
    job = dict(job)
    judge(job, text, status)
    if options.keep and job["result"] != "clean":
        os.makedirs(options.keep, exist_ok=True)
        name = re.sub(r"\W+", "_", f"{job['tool']}_{job['tests']}_{job['part']}")
        with open(os.path.join(options.keep, name + ".txt"), "w") as f:
            f.write(text)
    job["seconds"] = round(time.time() - begin, 1)
    return job


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("program", help="a backend_test of the preset cuda")
    p.add_argument("--json", help="the record for scripts/gpu_tables.py")
    p.add_argument("--keep", help="a folder for the whole output of what is not clean")
    p.add_argument("--jobs", type=int, default=12, help="processes side by side (default 12)")
    p.add_argument("--limit", type=float, default=60, help="seconds a process may take (default 60)")
    p.add_argument("--within", type=float, default=0, help="seconds that all may take together")
    p.add_argument("--tools", default="memcheck,synccheck,racecheck")
    options = p.parse_args()
    if not os.access(options.program, os.X_OK):
        sys.exit(f"gpu_sanitize: {options.program} is no program\n  try: cmake --build --preset cuda --target backend_test")
    deadline = time.time() + options.within if options.within else None
    done = []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        waiting = [pool.submit(run, job, options, deadline) for job in jobs_of(options.program, options.tools.split(","))]
        for future in concurrent.futures.as_completed(waiting):
            job = future.result()
            done.append(job)
            part = f" {job['part']}/{job['parts']}" if job["parts"] > 1 else ""
            said = {"findings": f"{job.get('findings')} findings, first: {job.get('first')}",
                    "failed": f"failed: {job.get('first')}"}.get(job["result"], job["result"])
            skipped = f", {job['skipped']} skipped" if job.get("skipped") else ""
            print(f"{job['tool']:9} {job['tests']}{part}: {said} ({job.get('passed', 0)} tests passed{skipped}, "
                  f"{job['seconds']} s)", flush=True)
    summary = []
    for tool in options.tools.split(","):
        of = [job for job in done if job["tool"] == tool]
        count = {result: sum(job["result"] == result for job in of) for result in
                 ("clean", "findings", "failed", "timed out", "not run")}
        summary.append(f"{tool}: " + ", ".join(f"{n} {result}" for result, n in count.items() if n) +
                       f", {sum(job.get('passed', 0) for job in of)} tests passed")
    print("\n".join(summary))
    if options.json:
        with open(options.json, "w") as f:
            json.dump({"runs": sorted(done, key=lambda job: (job["tool"], job["tests"], job["part"]))}, f)
    sys.exit(any(job["result"] != "clean" for job in done))


if __name__ == "__main__":
    main()
