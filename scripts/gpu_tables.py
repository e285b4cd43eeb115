#!/usr/bin/env python3
"""Rows for docs/performance.md from the record of scripts/gpu_check.sh.

usage: scripts/gpu_tables.py build/gpu_check/report.json
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
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with open(sys.argv[1]) as f:
        r = json.load(f)
    benches = [r[k] for k in r if isinstance(r[k], dict) and "ceilings" in r[k]]
    print(f"## {r['device']}\n")
    print(f"Driver {r['driver']}, {r['date'][:10]}, commit {r['commit']}.", end="")
    if benches:
        c = benches[0]["ceilings"]
        print(f" Ceilings in the same run: products bf16 {rate(c['bf16_flops_per_second'])}FLOP/s, f32 "
              f"{rate(c['f32_flops_per_second'])}FLOP/s; reading {rate(c['read_bytes_per_second'])}B/s, copying "
              f"{rate(c['copy_bytes_per_second'])}B/s (over {c['working_set_bytes'] >> 20} MiB).", end="")
    peers = [r[k] for k in r if k.startswith("peer_")]
    if peers:
        print(f" Peer: transformers {peers[0]['transformers']} on PyTorch {peers[0]['torch']}, the same model, in the "
              "same run.", end="")
    print("\n")

    whole = [("training", "train", "train", "peer_train")] + [
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
    if "layer" in r:
        print("**One full-size layer** (`configs/v3-layer.json`)\n\n| | median (fastest) |\n|---|---|")
        for key, what in (("forward", "forward"), ("backward", "forward and backward")):
            t = r["layer"][key]
            print(f"| {what} | {1e3 * t['seconds']:.1f} ms ({1e3 * t['fastest_seconds']:.1f}) |")
        print()
    if "gemm" in r:
        print("**Products**, C = A B^T, M = N = K\n\n| format | N | rate | of the ceiling |\n|---|---|---|---|")
        for row in r["gemm"]["gemm"]:
            print(f"| {row['format']} | {row['n']} | {rate(row['flops_per_second'])}FLOP/s | {100 * row['share']:.0f} % |")
        print()
    if "ops" in r:
        print("**Memory-bound operations**, cold second-level cache, median of 20; more than 100 %: the cache served part "
              "of it.\n\n| operation | us | GB/s | share of copying |\n|---|---|---|---|")
        for row in r["ops"]["ops"]:
            us = 1e6 * row["seconds"]
            if row["bytes"]:
                print(f"| {row['op']}, {row['shape']} | {us:.1f} | {row['bytes'] / row['seconds'] * 1e-9:.0f} | "
                      f"{100 * row['share_of_copy']:.0f} % |")
            else:
                print(f"| {row['op']}, {row['shape']} | {us:.1f} | | |")
        print()
    print("| stage | result | seconds | mean W | peak W | energy kJ | SM MHz | peak MiB |\n|---|---|---|---|---|---|---|---|")
    for s in r["stages"]:
        print(f"| {s['stage']} | {s['result']} | {s['seconds']} | {s['mean_watts']} | {s['peak_watts']} | "
              f"{s['energy_joules'] / 1e3:.1f} | {s['sm_mhz']} | {s['peak_memory_mib']} |")


if __name__ == "__main__":
    main()
