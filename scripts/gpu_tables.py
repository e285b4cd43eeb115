#!/usr/bin/env python3
"""Rows for docs/performance.md from the record of scripts/gpu_check.sh, or from several of one run on one machine.

usage: scripts/gpu_tables.py build/gpu_check/report.json [more ...]
"""
import json
import sys


def rate(per_second):
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if per_second >= size:
            return f"{per_second / size:.3g} {unit}"
    return f"{per_second:.3g} "


def tokens(per_second):
    return f"{per_second / 1e3:.1f}k" if per_second >= 1e4 else f"{per_second:.0f}"


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    r = {"stages": []}
    for path in sys.argv[1:]:
        with open(path) as f:
            one = json.load(f)
        r["stages"] += one.pop("stages")
        r.update(one)
    benches = [r[k] for k in r if isinstance(r[k], dict) and "ceilings" in r[k]]
    print(f"## {r['device']}\n")
    print(f"Driver {r['driver']}, {r['date'][:10]}, commit {r['commit']}.", end="")
    if benches:
        c = benches[0]["ceilings"]
        print(f" Ceilings in the same run: products bf16 {rate(c['bf16_flops_per_second'])}FLOP/s, f32 "
              f"{rate(c['f32_flops_per_second'])}FLOP/s; reading {rate(c['read_bytes_per_second'])}B/s, copying "
              f"{rate(c['copy_bytes_per_second'])}B/s (over {c['working_set_bytes'] >> 20} MiB).", end="")
    peers = [r[k] for k in r if k.startswith("peer_") and "transformers" in r[k]]
    if peers:
        print(f" Peer: transformers {peers[0]['transformers']} on PyTorch {peers[0]['torch']}, the same model, in the "
              "same run.", end="")
    print("\n")

    whole = [("training, bf16", "train", "train", "peer_train"),
             ("training, fp8", "train_fp8", "train", "peer_train")] + [
        (f"decode, batch {n}, context 512", f"decode_{n}", "decode", f"peer_decode_{n}") for n in (1, 128)]
    if any(part in r for _, part, _, _ in whole):
        print("**A whole model.**\n\n| what | ours | peer | ours : peer |\n|---|---|---|---|")
        for what, part, key, peer in whole:
            if part not in r:
                continue
            ours = r[part][key]
            its = r.get(peer, {}).get(key, {}).get("tokens_per_second")
            beside = f"{tokens(its)} | {ours['tokens_per_second'] / its:.2f} x" if its else " | "
            print(f"| {what} | {tokens(ours['tokens_per_second'])} tok/s ({1e3 * ours['seconds']:.3g} ms a step) | "
                  f"{beside} |")
        print()
    parts = (("bf16", "layer"), ("fp8", "layer_fp8"), ("fp8, one of 64 ranks", "layer_rank"))
    layers = [(name, r[part]["layer"]) for name, part in parts if part in r]
    if layers:
        print("**One full-size layer** (`configs/v3-layer.json`), median (fastest)\n\n| |" +
              "".join(f" {name} |" for name, _ in layers) + "\n|---|" + "---|" * len(layers))
        for key, what in (("forward", "forward"), ("backward", "forward and backward, overwriting gradients"),
                          ("adding", "the same, adding to them")):
            print(f"| {what} |" + "".join(
                f" {1e3 * t[key]['seconds']:.1f} ms ({1e3 * t[key]['fastest_seconds']:.1f}) |" for _, t in layers))
        print()
    if "kernels" in r:
        peer = r.get("peer_kernels", {})
        for part in ("products", "attention"):
            its = {(row["op"], row["shape"], row["graph"]): row["seconds"] for row in peer.get(part, [])}
            print(f"**{part.capitalize()} at DeepSeek-V3's sizes**; \"graph\": without the launch.\n\n"
                  "| operation | us | TFLOP/s | peer | ours : peer |\n|---|---|---|---|---|")
            for row in r["kernels"][part]:
                t = its.get((row["op"], row["shape"], row["graph"]))
                beside = f"{row['flops'] / t * 1e-12:.0f} | {t / row['seconds']:.2f} x" if t else " | "
                print(f"| {row['op']}, {row['shape']}{', graph' if row['graph'] else ''} | {1e6 * row['seconds']:.1f} | "
                      f"{row['flops'] / row['seconds'] * 1e-12:.0f} | {beside} |")
            print()
    if "gemm" in r:
        print("**Products**, C = A B^T, M = N = K\n\n| format | N | rate | of the ceiling |\n|---|---|---|---|")
        for row in r["gemm"]["gemm"]:
            print(f"| {row['format']} | {row['n']} | {rate(row['flops_per_second'])}FLOP/s | {100 * row['share']:.0f} % |")
        print()
    if "ops" in r:
        print("**Memory-bound operations**, cold second-level cache, median of 20; more than 100 %: the cache served part "
              "of it. Shares of copying 256 MiB, and of copying as many bytes by the same clock.\n\n"
              "| operation | us | GB/s | share of copying | as many bytes |\n|---|---|---|---|---|")
        for row in r["ops"]["ops"]:
            us = 1e6 * row["seconds"]
            if row["bytes"]:
                print(f"| {row['op']}, {row['shape']} | {us:.1f} | {row['bytes'] / row['seconds'] * 1e-9:.0f} | "
                      f"{100 * row['share_of_copy']:.0f} % | {100 * row['share_of_equal_copy']:.0f} % |")
            else:
                print(f"| {row['op']}, {row['shape']} | {us:.1f} | | | |")
        print()
    if "sanitize" in r:
        print("**compute-sanitizer**, all operations at small sizes\n\n"
              "| tool | tests | processes | not clean |\n|---|---|---|---|")
        runs = r["sanitize"]["runs"]
        for tool in sorted({run["tool"] for run in runs}):
            of = [run for run in runs if run["tool"] == tool]
            bad = [f"{run['tests']}: {run['result']}" + (f", {run['first']}" if run.get("first") else "")
                   for run in of if run["result"] != "clean"]
            print(f"| {tool} | {sum(run.get('passed', 0) for run in of)} | {len(of)} | "
                  f"{'; '.join(bad).replace('|', ',') or 'none'} |")
        print()
    print("| stage | result | seconds | mean W | peak W | energy kJ | SM MHz | peak MiB |\n|---|---|---|---|---|---|---|---|")
    for s in r["stages"]:
        print(f"| {s['stage']} | {s['result']} | {s['seconds']} | {s['mean_watts']} | {s['peak_watts']} | "
              f"{s['energy_joules'] / 1e3:.1f} | {s['sm_mhz']} | {s['peak_memory_mib']} |")


if __name__ == "__main__":
    main()
