#!/usr/bin/env python3
"""Rows for docs/performance.md from the record of scripts/gpu_check.sh, or from several of one run on one machine:
ours, the peer's, how many times faster, what is asked of an H200 and whether it is reached; a line names what is
missed, and what had no peer beside it.

usage: scripts/gpu_tables.py build/gpu_check/report.json [more ...] | --self-test
"""
import contextlib
import io
import json
import statistics
import sys
import tempfile

# What is asked of one H200 (docs/performance.md): times the peer's rate in the same run.
ASKED_TRAINING, ASKED_PRODUCT = 2.2, 1.1
ASKED_ATTENTION = {"attention forward": 1.1, "attention backward": 1.15}
# Tokens a second by sequences; milliseconds of a layer; absorbed attention by operation and shape: a rate or a time.
ASKED_DECODE = {1: 2e3, 128: 8e4}
ASKED_LAYER = {("layer_fp8", "forward"): 10, ("layer_fp8", "backward"): 36, ("layer_rank", "backward"): 24}
ASKED_LATENT = {("decode bf16", "128 x 1 on 4096, 128 heads"): (665, "TFLOP/s"),
                ("decode bf16", "128 x 2 on 4096, 128 heads"): (695, "TFLOP/s"),
                ("decode bf16", "128 x 1 on 4096, 64 heads"): (4150, "GB/s"),
                ("decode bf16", "128 x 1 on 4096, 16 heads"): (4150, "GB/s"),
                ("decode bf16", "1 x 1 on 65536, 128 heads"): (42, "us"),
                ("decode fp8 cache", "128 x 1 on 4096, 128 heads"): (550, "TFLOP/s")}


class Asked:
    """Cells of what is asked, and the count of what is reached."""

    def __init__(self):
        self.all, self.missed, self.alone = 0, [], []

    def cell(self, what, value, bound, unit, at_most=False):
        self.all += 1
        if value <= bound if at_most else value >= bound:
            return f"{bound:,g} {unit}"
        shown = f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
        self.missed.append(f"{what} ({shown} {unit}, asked {bound:,g})")
        return f"{bound:,g} {unit}: **missed**"

    def times_peer(self, what, ratio, bound):
        """`ratio`: None without a peer."""
        if ratio is not None:
            return self.cell(what, ratio, bound, "x the peer")
        self.alone.append(what)
        return f"{bound:,g} x the peer: not run"

    def line(self):
        said = f"Asked: {self.all - len(self.missed)} of {self.all} reached."
        said += f" Missed: {'; '.join(self.missed)}." if self.missed else ""
        return said + (f" No peer beside: {'; '.join(self.alone)}." if self.alone else "") + "\n"


def rate(per_second):
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if per_second >= size:
            return f"{per_second / size:.3g} {unit}"
    return f"{per_second:.3g} "


def tokens(per_second):
    return f"{per_second / 1e3:.1f}k" if per_second >= 1e4 else f"{per_second:.0f}"


def turns(r, prefix):
    """What was measured in turns with the peer: (operation, shape) -> the row with the median time, and all times."""
    rows = {}
    for key in sorted(k for k in r if k.startswith(prefix) and k[len(prefix):].isdigit()):
        for row in r[key]["attention"]:
            rows.setdefault((row["op"], row["shape"]), []).append(row)
    return {what: {**of[0], "seconds": statistics.median(row["seconds"] for row in of),
                   "each": [row["seconds"] for row in of]} for what, of in rows.items()}


def rates(row):
    """TFLOP/s of the median, and of every turn."""
    each = ", ".join(f"{row['flops'] / t * 1e-12:.0f}" for t in row["each"])
    return f"{row['flops'] / row['seconds'] * 1e-12:.0f}" + (f" ({each})" if len(row["each"]) > 1 else "")


def attention(r, asked):
    ours, peer = turns(r, "attention_"), turns(r, "peer_attention_")
    training = {what: row for what, row in ours.items() if what[0] in ASKED_ATTENTION}
    if training:
        print("**Attention for training**, whole operations, ours and the peer's in turns on this card: the median of "
              "the turns (each), TFLOP/s\n\n| operation | ours | peer | ours : peer | asked |\n|---|---|---|---|---|")
        for (op, shape), row in training.items():
            its = peer.get((op, shape))
            ratio = its["seconds"] / row["seconds"] if its else None
            beside = f"{rates(its)} | {ratio:.2f} x" if its else " | "
            print(f"| {op}, {shape} | {rates(row)} | {beside} | "
                  f"{asked.times_peer(f'{op}, {shape}', ratio, ASKED_ATTENTION[op])} |")
        print()
    latent = {what: row for what, row in ours.items() if what not in training}
    if latent:
        print("**Absorbed attention over paged latents**, \"B x q on n\": B sequences, q queries each, n keys\n\n"
              "| operation | us | TFLOP/s | GB/s | asked |\n|---|---|---|---|---|")
        for (op, shape), row in latent.items():
            t = row["seconds"]
            of = {"us": 1e6 * t, "TFLOP/s": row["flops"] / t * 1e-12, "GB/s": row["bytes"] / t * 1e-9}
            bound, unit = ASKED_LATENT.get((op, shape), (0, ""))
            cell = asked.cell(f"{op}, {shape}", of[unit], bound, unit, at_most=unit == "us") if unit else ""
            beside = latent.get(("decode bf16", shape))
            if op == "decode fp8 cache" and shape == "128 x 1 on 4096, 16 heads" and beside:
                cell = asked.cell(f"{op}, {shape}", beside["seconds"] / t, 1.2, "x the bf16 cache")
            print(f"| {op}, {shape} | {of['us']:.1f} | {of['TFLOP/s']:.0f} | {of['GB/s']:.0f} | {cell} |")
        print()


def main(paths):
    asked, r = Asked(), {"stages": []}
    for path in paths:
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

    whole = [("training, bf16", "train", "train", "train"), ("training, fp8", "train_fp8", "train", "train")] + [
        (f"decode, batch {n}, context 512", f"decode_{n}", "decode", f"decode_{n}") for n in ASKED_DECODE]
    if any(part in r for _, part, _, _ in whole):
        best = max((r[part]["train"]["tokens_per_second"] for part in ("train", "train_fp8") if part in r), default=0)
        print("**A whole model.**\n\n| what | ours | peer | ours : peer | asked |\n|---|---|---|---|---|")
        for what, part, key, peer in whole:
            if part not in r:
                continue
            ours = r[part][key]
            mine = ours["tokens_per_second"]
            its = r.get("peer_model", {}).get(peer, {}).get("tokens_per_second")
            beside = f"{tokens(its)} | {mine / its:.2f} x" if its else " | "
            cell = ""
            if key == "decode":
                cell = asked.cell(what, mine, ASKED_DECODE[ours["tokens"]], "tok/s")
            elif mine == best:  # the faster format
                cell = asked.times_peer(what, mine / its if its else None, ASKED_TRAINING)
            print(f"| {what} | {tokens(mine)} tok/s ({1e3 * ours['seconds']:.3g} ms a step) | {beside} | {cell} |")
        print()
    parts = (("bf16", "layer"), ("fp8", "layer_fp8"), ("fp8, one of 64 ranks", "layer_rank"))
    layers = [(name, part, r[part]["layer"]) for name, part in parts if part in r]
    if layers:
        print("**One full-size layer** (`configs/v3-layer.json`), median (fastest)\n\n| |" +
              "".join(f" {name} |" for name, _, _ in layers) + " peer, bf16 |\n|---|" + "---|" * (len(layers) + 1))
        for key, what in (("forward", "forward"), ("backward", "forward and backward, overwriting gradients"),
                          ("adding", "the same, adding to them")):
            cells = []
            for name, part, t in layers:
                ms = 1e3 * t[key]["seconds"]
                bound = ASKED_LAYER.get((part, key))
                cells.append(f"{ms:.1f} ms ({1e3 * t[key]['fastest_seconds']:.1f})" + (
                    f", asked {asked.cell(f'layer, {name}, {what}', ms, bound, 'ms', at_most=True)}" if bound else ""))
            its = r.get("peer_layer", {}).get(f"layer_{key}")
            cells.append(f"{1e3 * its['seconds']:.1f} ms ({1e3 * its['fastest_seconds']:.1f})" if its else "")
            print(f"| {what} | {' | '.join(cells)} |")
        print()
    if "kernels" in r:
        its = {(row["op"], row["shape"], row["graph"]): row["seconds"]
               for row in r.get("peer_kernels", {}).get("products", [])}
        print("**Products at DeepSeek-V3's sizes**; \"graph\": without the launch; few rows are judged by it."
              "\n\n| operation | us | TFLOP/s | peer | ours : peer | asked |\n|---|---|---|---|---|---|")
        in_graphs = {(row["op"], row["shape"]) for row in r["kernels"]["products"] if row["graph"]}
        for row in r["kernels"]["products"]:
            what = f"{row['op']}, {row['shape']}{', graph' if row['graph'] else ''}"
            t = its.get((row["op"], row["shape"], row["graph"]))
            beside = f"{row['flops'] / t * 1e-12:.0f} | {t / row['seconds']:.2f} x" if t else " | "
            cell = ""
            if row["op"] == "gemm fp8" and row["graph"] == ((row["op"], row["shape"]) in in_graphs):
                cell = asked.times_peer(what, t / row["seconds"] if t else None, ASKED_PRODUCT)
            print(f"| {what} | {1e6 * row['seconds']:.1f} | {row['flops'] / row['seconds'] * 1e-12:.0f} | {beside} | "
                  f"{cell} |")
        print()
    attention(r, asked)
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
    for stage, what in (("sanitize", "all operations"), ("sanitize_portable", "what older cards run")):
        if stage not in r:
            continue
        print(f"**compute-sanitizer**, {what} at small sizes\n\n"
              "| tool | tests | processes | not clean |\n|---|---|---|---|")
        runs = r[stage]["runs"]
        for tool in sorted({run["tool"] for run in runs}):
            of = [run for run in runs if run["tool"] == tool]
            bad = [f"{run['tests']}: {run['result']}" + (f", {run['first']}" if run.get("first") else "")
                   for run in of if run["result"] != "clean"]
            print(f"| {tool} | {sum(run.get('passed', 0) for run in of)} | {len(of)} | "
                  f"{'; '.join(bad).replace('|', ',') or 'none'} |")
        for tool, lines in r[stage].get("left_out", {}).items():
            if lines:
                print(f"\n{tool} leaves out {'; '.join(lines)}.")
        print()
    if asked.all or asked.alone:
        print(asked.line())
    print("| stage | result | seconds | mean W | peak W | energy kJ | SM MHz | peak MiB |\n|---|---|---|---|---|---|---|---|")
    for s in r["stages"]:
        print(f"| {s['stage']} | {s['result']} | {s['seconds']} | {s['mean_watts']} | {s['peak_watts']} | "
              f"{s['energy_joules'] / 1e3:.1f} | {s['sm_mhz']} | {s['peak_memory_mib']} |")


def self_test():
    """Made-up records of two calls: every ratio, and every bound from both sides."""
    def row(op, shape, seconds, graph=False):
        return {"op": op, "shape": shape, "graph": graph, "seconds": seconds, "flops": 1e12, "bytes": 1e9}

    forward, backward, shape = "attention forward", "attention backward", "4096 tokens, 128 heads, 192/128"
    machine = {"device": "card", "driver": "1", "date": "2026-01-02T03:04:05Z", "commit": "c", "stages": []}
    step = {"seconds": 0.1, "fastest_seconds": 0.1}
    ceilings = {"bf16_flops_per_second": 1e15, "f32_flops_per_second": 1e13, "read_bytes_per_second": 4e12,
                "copy_bytes_per_second": 4e12, "working_set_bytes": 1 << 28}
    ours = {**machine,
            "train": {"ceilings": ceilings, "train": {**step, "tokens_per_second": 200.0}},
            "train_fp8": {"ceilings": ceilings, "train": {**step, "tokens_per_second": 230.0}},
            "decode_1": {"ceilings": ceilings, "decode": {**step, "tokens": 1, "tokens_per_second": 2100.0}},
            "decode_128": {"ceilings": ceilings, "decode": {**step, "tokens": 128, "tokens_per_second": 7e4}},
            "layer_fp8": {"ceilings": ceilings, "layer": {key: {"seconds": 0.011, "fastest_seconds": 0.009}
                                                          for key in ("forward", "backward", "adding")}}}
    for turn, times in enumerate(((1.0, 1.0), (1.0, 1.1), (1.2, 1.0)), 1):
        ours[f"attention_{turn}"] = {"ceilings": ceilings, "attention": [
            row(forward, shape, times[0]), row(backward, shape, times[1]),
            row("decode bf16", "1 x 1 on 65536, 128 heads", 41e-6),
            row("decode bf16", "128 x 1 on 4096, 16 heads", 1.19e-3),
            row("decode fp8 cache", "128 x 1 on 4096, 16 heads", 1e-3)]}
    ours["kernels"] = {"ceilings": ceilings, "products": [
        row("gemm fp8", "64 x 8 x 8", 1.0), row("gemm fp8", "64 x 8 x 8", 0.5, True),
        row("gemm fp8", "4096 x 8 x 8", 1.0), row("gemm fp8", "4096 x 9 x 9", 1.0)]}
    peer = {**machine, "peer_attention_1": {"attention": [row(forward, shape, 1.1), row(backward, shape, 1.14)]},
            "peer_kernels": {"products": [row("gemm fp8", "64 x 8 x 8", 1.0), row("gemm fp8", "64 x 8 x 8", 0.6, True),
                                          row("gemm fp8", "4096 x 8 x 8", 1.0)]},
            "peer_layer": {"layer_forward": {"seconds": 0.02, "fastest_seconds": 0.0195}},
            "peer_model": {"torch": "1", "transformers": "2", "train": {"tokens_per_second": 100.0},
                           "decode_1": {"tokens_per_second": 50.0}}}
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for name, record in (("ours", ours), ("peer", peer)):
            paths.append(f"{folder}/{name}.json")
            with open(paths[-1], "w") as f:
                json.dump(record, f)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            main(paths)
    text = out.getvalue()
    missed = "decode, batch 128, context 512 (70,000 tok/s, asked 80,000); layer, fp8, forward (11 ms, asked 10); " \
             "gemm fp8, 4096 x 8 x 8 (1 x the peer, asked 1.1); " \
             f"{backward}, {shape} (1.14 x the peer, asked 1.15); decode bf16, 128 x 1 on 4096, 16 heads " \
             "(840.3 GB/s, asked 4,150); decode fp8 cache, 128 x 1 on 4096, 16 heads (1.19 x the bf16 cache, asked 1.2)"
    wrong = [line for line in (
        "| training, bf16 | 200 tok/s (100 ms a step) | 100 | 2.00 x |  |",
        "| training, fp8 | 230 tok/s (100 ms a step) | 100 | 2.30 x | 2.2 x the peer |",
        "| decode, batch 1, context 512 | 2100 tok/s (100 ms a step) | 50 | 42.00 x | 2,000 tok/s |",
        "| decode, batch 128, context 512 | 70.0k tok/s (100 ms a step) |  |  | 80,000 tok/s: **missed** |",
        "| forward | 11.0 ms (9.0), asked 10 ms: **missed** | 20.0 ms (19.5) |",
        "| gemm fp8, 64 x 8 x 8 | 1000000.0 | 1 | 1 | 1.00 x |  |",
        "| gemm fp8, 64 x 8 x 8, graph | 500000.0 | 2 | 2 | 1.20 x | 1.1 x the peer |",
        f"| {forward}, {shape} | 1 (1, 1, 1) | 1 | 1.10 x | 1.1 x the peer |",
        f"| {backward}, {shape} | 1 (1, 1, 1) | 1 | 1.14 x | 1.15 x the peer: **missed** |",
        "| decode bf16, 1 x 1 on 65536, 128 heads | 41.0 | 24390 | 24390 | 42 us |",
        f"Asked: 6 of 12 reached. Missed: {missed}. No peer beside: gemm fp8, 4096 x 9 x 9.") if line not in text]
    if wrong:
        sys.exit("gpu_tables: not said:\n  " + "\n  ".join(wrong) + "\n" + text)
    print("gpu_tables: ratios and what is missed are said")


if __name__ == "__main__":
    if sys.argv[1:] == ["--self-test"]:
        self_test()
    elif len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    else:
        main(sys.argv[1:])
