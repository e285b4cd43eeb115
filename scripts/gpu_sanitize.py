#!/usr/bin/env python3
"""backend_test under compute-sanitizer, on the GPU alone: memcheck and synccheck over every operation, racecheck over
what it follows. Suites that are new to this script get a process of their own under each tool; what racecheck leaves
out is said with the reason. With --portable instead: memcheck and racecheck over the kernels of older cards where newer
ones have others.

A process for every line of output. Exits 1 unless all is clean.
"""
import argparse
import concurrent.futures
import fnmatch
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
# Suites of large tensors or many cases, of which others cover the kernels, and of time.
LARGE = re.compile(r"LatentTable|AttentionLarge|CudaLarge|CudaQueue")
# More memory than there is, which the tools report; what measures time; large shapes of what small ones cover.
LEFT_OUT = ["CudaDevice.MemoryIsAlignedAndTooMuchIsRefusedWithNumbers", "CudaDevice.AnotherStreamWaits*",
            "RmsNorm.*LargeShapes*"]
# Small suites that share a process, and long ones that are cut into parts.
TOGETHER = [["AdamW", "SumSquares", "Add", "Cast", "Fill"],
            ["Gate", "BalanceLoss", "CountGroups", "GateBackward", "UpdateGateBias"],
            ["Permute", "Unpermute"], ["QuantizeWeight", "E5m6"], ["LatentAppend", "LatentGather"],
            ["GroupedGemm", "GroupedWeightGrad"]]
PARTS = {"Gemm": 5, "Attention": 5, "LatentAttention": 6, "HopperProducts": 11, "Fp8Product": 3, "Quantize": 3,
         "RmsNorm": 3, "Sample": 2, "CrossEntropy": 2, "Rows": 2, "GroupedGemm": 2}
# racecheck does not follow mbarriers: it takes the initialisation of one and the first arrival at it, both by the same
# thread, for a race (route_few.cu), and what is written before an arrival and read after the wait (bf16_gemm.cuh; the
# kernels of cuBLASLt, too). Leaving such kernels out by name (--kernel-name-exclude) makes them crash. So tests are
# chosen that run others, and what the rest of a suite runs is said.
CLUSTERS, COPIES = "blocks of a cluster that wait at mbarriers", "the copy engine and mbarriers"
RACED = {"Attention": (["ForwardAndBackward*", "WithoutRope*", "RowsOfNo*"], COPIES),
         "LatentAttention": (["MeetsTheMetric*"], COPIES),
         "Gemm": (["SomeRows*", "EveryLayout*", "NothingToSum*"], "kernels of cuBLASLt, or none of a GPU"),
         "FixedRows": (["Products*", "Wide*", "Heads*", "Experts"], CLUSTERS),
         "RmsNorm": (["Forward*", "BackwardOverwrites*", "WhatIs*", "ARow*"], COPIES),
         "Sample": (["DrawsWhatRefDraws", "DrawsWhatRefDrawsFromMoreLogits", "Equal*", "Nan*", "ARow*",
                     "Frequencies*"], CLUSTERS)}
NOT_RACED = {"Route": CLUSTERS, "LatentQuery": CLUSTERS, "HopperProducts": COPIES, "Fp8Product": COPIES,
             "GroupedGemm": COPIES, "GroupedWeightGrad": COPIES, "LatentDecode": COPIES,
             "CudaDevice": "every operation, so " + COPIES}
# What older cards run (CACHALOT_CUDA_KERNELS) where a Hopper card runs its own: no mbarriers, so racecheck follows.
# Each is a process; what else such a card composes is of kernels that every card runs.
PORTABLE = [["Attention.AlignedHeads*"], ["Attention.ManyHeads*", "Attention.TheWidths*", "Attention.NanOf*"],
            ["Attention.BlocksOf*", "Attention.AQueryHas*", "Attention.Large*"],
            ["LatentAttention.TheWidths*", "LatentAttention.LongContexts*", "LatentAttention.PackedAs*"],
            ["LatentAttention.OverACache*", "LatentAttention.ShortSequences*"], ["LatentQuery.*"], ["GroupedGemm.*"],
            ["GroupedWeightGrad.*", "RmsNorm.BackwardOfAligned*"], ["Fp8Product.EveryExpert*", "Fp8Product.Weight*"],
            ["CrossEntropy.L*"], ["ExpertMlp.*"]]
SLOW = ["Sample", "NormGemm", "Rows", "ExpertMlp"]  # under racecheck: they come first
RACE_PARTS = {"Sample": 6, "NormGemm": 4, "Rows": 4, "Attention": 3, "LatentAttention": 1, "Gemm": 2, "Permute": 2,
              "Swiglu": 3}


def tests_of(program):
    """Suite -> its tests, without what is for a processor alone."""
    listed = subprocess.run([program, "--gtest_list_tests"], capture_output=True, text=True, check=True).stdout
    tests, suite = {}, None
    for line in listed.splitlines():
        if re.match(r"\w+\.\s*$", line):
            suite = line.strip()[:-1]
            if not ELSEWHERE.match(suite) and not LARGE.match(suite):
                tests[suite] = []
        elif suite in tests and line.startswith("  "):
            tests[suite].append(line.split()[0])
    return tests


def raced(tests):
    """The same, of what racecheck runs as filters; lines about the rest; what the lists above name and is not there."""
    filters, left_out = {}, []
    gone = [suite for suite in list(NOT_RACED) + list(RACED) if suite not in tests]  # RACED: patterns, why no others
    gone += [one for filters in PORTABLE for one in filters
             if not fnmatch.filter([f"{suite}.{name}" for suite, names in tests.items() for name in names], one)]
    for suite, names in tests.items():
        if suite in NOT_RACED:
            left_out.append(f"{suite}: {NOT_RACED[suite]}")
            continue
        some, why = RACED.get(suite, (["*"], ""))
        gone += [f"{suite}.{pattern}" for pattern in some if not fnmatch.filter(names, pattern)]
        others = [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in some)]
        if others:
            left_out.append(f"{suite}: of {', '.join(others)}: {why}")
        filters[suite] = [f"{suite}.{pattern}" for pattern in some]
    return filters, left_out, gone


def jobs_of(tests, tools):
    runs = []
    for tool in tools:
        filters = raced(tests)[0] if tool == "racecheck" else {suite: [suite + ".*"] for suite in tests}
        groups = [[s for s in group if s in filters] for group in TOGETHER]
        groups = [g for g in groups if g] + [[s] for s in filters if not any(s in g for g in TOGETHER)]
        for group in groups:
            parts = PARTS.get(group[0], 1)
            if tool == "racecheck":
                parts = RACE_PARTS.get(group[0], parts)
            runs.append((tool == "racecheck" and group[0] in SLOW, parts, tool, [f for s in group for f in filters[s]]))
    for _, parts, tool, filters in sorted(runs, key=lambda run: run[:2], reverse=True):  # the longest first
        for part in range(parts):
            yield {"tool": tool, "tests": ":".join(filters), "part": part + 1, "parts": parts}


def portable_jobs(tools):
    for tool in tools:
        for filters in PORTABLE:
            yield {"tool": tool, "tests": ":".join(filters), "part": 1, "parts": 1, "kernels": "portable"}


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
    limit = options.race_limit if job["tool"] == "racecheck" else options.limit
    left = limit if deadline is None else min(limit, deadline - begin)
    if left <= 0:
        return {**job, "result": "not run", "seconds": 0}
    environment = {**os.environ, "CACHALOT_TEST_DEVICE": "cuda", "GTEST_TOTAL_SHARDS": str(job["parts"]),
                   "GTEST_SHARD_INDEX": str(job["part"] - 1), "CACHALOT_CUDA_KERNELS": job.get("kernels", "")}
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
        name = re.sub(r"\W+", "_", f"{job['tool']}_{job.get('kernels', '')}{job['tests']}_{job['part']}")
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
    p.add_argument("--limit", type=float, default=90, help="seconds a process may take (default 90)")
    p.add_argument("--race-limit", type=float, default=140, help="seconds one of racecheck may take (default 140)")
    p.add_argument("--within", type=float, default=0, help="seconds that all may take together")
    p.add_argument("--tools", help="default memcheck,synccheck,racecheck; with --portable memcheck,racecheck")
    p.add_argument("--portable", action="store_true", help="what older cards run")
    options = p.parse_args()
    if not os.access(options.program, os.X_OK):
        sys.exit(f"gpu_sanitize: {options.program} is no program\n  try: cmake --build --preset cuda --target backend_test")
    tools = options.tools or ("memcheck,racecheck" if options.portable else "memcheck,synccheck,racecheck")
    tools = tools.split(",")
    tests = tests_of(options.program)
    left_out, gone = raced(tests)[1:] if "racecheck" in tools else ([], [])
    if options.portable:
        left_out = []
    deadline = time.time() + options.within if options.within else None
    done = []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        jobs = portable_jobs(tools) if options.portable else jobs_of(tests, tools)
        waiting = [pool.submit(run, job, options, deadline) for job in jobs]
        for future in concurrent.futures.as_completed(waiting):
            job = future.result()
            done.append(job)
            part = f" {job['part']}/{job['parts']}" if job["parts"] > 1 else ""
            said = {"findings": f"{job.get('findings')} findings, first: {job.get('first')}",
                    "failed": f"failed: {job.get('first')}"}.get(job["result"], job["result"])
            skipped = f", {job['skipped']} skipped" if job.get("skipped") else ""
            part += ", portable kernels" if job.get("kernels") else ""
            print(f"{job['tool']:9} {job['tests']}{part}: {said} ({job.get('passed', 0)} tests passed{skipped}, "
                  f"{job['seconds']} s)", flush=True)
    summary = []
    for tool in tools:
        of = [job for job in done if job["tool"] == tool]
        count = {result: sum(job["result"] == result for job in of) for result in
                 ("clean", "findings", "failed", "timed out", "not run")}
        summary.append(f"{tool}: " + ", ".join(f"{n} {result}" for result, n in count.items() if n) +
                       f", {sum(job.get('passed', 0) for job in of)} tests passed")
    print("\n".join(["racecheck leaves out " + line for line in left_out] + summary))
    if gone:
        print(f"gpu_sanitize: failed: no test {', '.join(gone)}\n  try: the new names in RACED and NOT_RACED")
    if options.json:
        with open(options.json, "w") as f:
            json.dump({"runs": sorted(done, key=lambda job: (job["tool"], job["tests"], job["part"])),
                       "left_out": {"racecheck": left_out}}, f)
    sys.exit(bool(gone) or any(job["result"] != "clean" for job in done))


if __name__ == "__main__":
    main()
