#!/usr/bin/env python3
"""Kills `cachalot pretrain` (SIGKILL) again and again and resumes it: what it ends with must be, bit for bit, what
a run that nobody touched ends with: weights, masters, moments, router biases, data cursor, metrics (but for
times). A third of the kills wait for a checkpoint to be under way.

  kill_resume.py PROGRAM [--kills N] [--threads 1,2] [--precision f32,bf16] [--steps N] [--seed N]
                 [--device cuda]

--kills are spread over all combinations; a run that ends before its share is used up is begun anew."""
import argparse
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

MODEL = {
    "hidden_size": 24, "intermediate_size": 40, "moe_intermediate_size": 12, "num_hidden_layers": 3,
    "first_k_dense_replace": 1, "num_nextn_predict_layers": 1, "num_attention_heads": 2, "q_lora_rank": 14,
    "kv_lora_rank": 10, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 7, "n_routed_experts": 6,
    "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
    "routed_scaling_factor": 1.0, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": None,
    "max_position_embeddings": 64, "initializer_range": 0.02,
}
TIME_FIELDS = ("seconds", "per_second", "joules", "joule", "watts", "mfu", "cost")  # and names that end with _ and one of them
DEVICE = "cpu"
TIME_STATE = ("metrics_bytes", "device", "files")


def is_time(name):
    return any(name == t or name.endswith("_" + t) for t in TIME_FIELDS)


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if not is_time(k)}
    return value


def start(program, folder, run, threads, log):
    return subprocess.Popen(
        program + ["pretrain", "config.json", "--run-dir", run, "--threads", str(threads), "--device", DEVICE],
        cwd=folder, stdout=log, stderr=subprocess.STDOUT)


def finish(program, folder, run, threads):
    log = folder / f"{run}.log"
    with open(log, "a") as out:
        code = start(program, folder, run, threads, out).wait()
    if code != 0:
        sys.exit(f"{run}: exit code {code}\n{log.read_text()[-3000:]}")


def difference(a, b):
    """What differs between two finished runs, or None."""
    last = sorted((a / "checkpoints").glob("step-*"))[-1].name
    x, y = a / "checkpoints" / last, b / "checkpoints" / last
    if not (y / "COMPLETE").exists():
        return f"{y} is missing"
    files = sorted(p.relative_to(x) for p in x.rglob("*") if p.is_file())
    if files != sorted(p.relative_to(y) for p in y.rglob("*") if p.is_file()):
        return "the checkpoints have other files"
    for f in files:
        if f.name in ("state.json", "COMPLETE"):
            continue
        if (x / f).read_bytes() != (y / f).read_bytes():
            return f"{last}/{f} differs"
    states = [json.loads((c / "state.json").read_text()) for c in (x, y)]
    for key in states[0]:
        if key not in TIME_STATE and states[0][key] != states[1][key]:
            return f"state.json: {key} differs"
    lines = [[json.loads(l) for l in (r / "metrics.jsonl").read_text().splitlines()] for r in (a, b)]
    if len(lines[0]) != len(lines[1]):
        return f"metrics.jsonl has {len(lines[1])} lines instead of {len(lines[0])}"
    for p, q in zip(*lines):
        if without_times(p) != without_times(q):
            return f"metrics.jsonl differs: {json.dumps(without_times(p))} and {json.dumps(without_times(q))}"
    return None


def kill(process, run, seconds, in_save):
    """Kills it some time after it began, or inside a checkpoint; False: it had ended by itself."""
    time.sleep(seconds)
    saves = 0
    if in_save:
        end = time.monotonic() + 5
        while process.poll() is None and time.monotonic() < end:
            if any(run.glob("checkpoints/*.tmp")):
                time.sleep(random.random() * 0.01)
                saves = 1
                break
    alive = process.poll() is None
    if alive:
        process.send_signal(signal.SIGKILL)
    process.wait()
    return alive, saves


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--precision", default="f32,bf16,fp8")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    random.seed(args.seed)
    global DEVICE
    DEVICE = args.device
    program = [str(pathlib.Path(args.program).resolve())]
    cases = [(p, int(t)) for p in args.precision.split(",") for t in args.threads.split(",")]
    total = in_saves = runs = 0
    begin = time.monotonic()
    for number, (precision, threads) in enumerate(cases):
        wanted = args.kills // len(cases) + (number < args.kills % len(cases))
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            (folder / "text.txt").write_text(
                "".join(f"the {i % 7}th line rhymes with the line before, {i * i}\n" for i in range(400)))
            (folder / "config.json").write_text(json.dumps({
                "model": MODEL, "tokenizer": {"vocab_size": 280}, "data": {"files": ["text.txt"], "held_out": 0.1},
                "train": {"steps": args.steps, "seq_len": 16, "batch": 4, "micro_batch": 2, "lr": 1e-2, "min_lr": 1e-3,
                          "warmup_steps": 3, "bias_gamma": 0.01, "precision": precision, "ema_decay": 0.9, "eval_every": 7,
                          "eval_sequences": 4, "save_every": 3, "keep_every": 20, "log_every": 10}}))
            clock = time.monotonic()
            finish(program, folder, "whole", threads)
            whole_seconds = time.monotonic() - clock
            killed = 0
            while killed < wanted:
                run = f"killed-{runs}"
                runs += 1
                before = killed
                while killed < wanted:
                    with open(folder / f"{run}.log", "a") as out:
                        process = start(program, folder, run, threads, out)
                        alive, saves = kill(process, folder / run, random.uniform(0, 0.6) * whole_seconds,
                                            random.random() < 0.33)
                    if not alive:
                        break
                    killed += 1
                    in_saves += saves
                finish(program, folder, run, threads)
                what = difference(folder / "whole", folder / run)
                if what:
                    sys.exit(f"{precision}, {threads} threads, after {killed - before} kills: {what}\n"
                             f"{(folder / f'{run}.log').read_text()[-3000:]}")
            total += killed
    print(f"{total} kills, {in_saves} of them inside a checkpoint, in {runs} runs of {min(len(cases), args.kills)} kinds: every run "
          f"ended with the bits of one that was left alone ({time.monotonic() - begin:.0f} s)")


if __name__ == "__main__":
    main()
