#!/usr/bin/env python3
"""`cachalot bench` on a small model: every part runs, and what it writes holds together.

usage: tests/bench.py CACHALOT CONFIG
"""
import json, subprocess, sys, tempfile, os


def main(program, config):
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "bench.json")
        subprocess.run([program, "bench", "train", "backward", "prefill", "decode", "--config", config, "--seconds", "0.02",
                        "--context", "40", "--new-tokens", "4", "--batch", "2", "--json", out], check=True)
        report = json.load(open(out))
        wrong = subprocess.run([program, "bench", "trian", "--config", config], capture_output=True, text=True)
    assert wrong.returncode == 1 and "did you mean train" in wrong.stderr, wrong

    ceilings = report["ceilings"]
    assert all(ceilings[name] > 1e8 for name in ("f32_flops_per_second", "read_bytes_per_second")), ceilings
    model = json.load(open(config))["model"]
    train = json.load(open(config))["train"]
    for name in ("train", "backward", "prefill", "decode"):
        part = report[name]
        operations = part["operations"]
        assert part["seconds"] > 0 and part["tokens_per_second"] > 0, (name, part)
        assert all(o["seconds"] > 0 and o["calls"] > 0 and o["bytes"] > 0 for o in operations), operations
        kinds = {o["op"] for o in operations}
        # Few rows: an expert's two products and what is between them are one operation.
        assert "gemm" in kinds and ("expert_mlp" if name == "decode" else "grouped_gemm") in kinds, kinds
        assert ("adamw" in kinds) == (name == "train"), (name, kinds)
        assert ("latent_attention" in kinds) == (name == "decode"), (name, kinds)
    assert report["train"]["tokens"] == 2 * train["seq_len"]
    # One decoded token through every layer: the router, one operation with its norm, runs once a layer with experts.
    gates = sum(o["calls"] for o in report["decode"]["operations"] if o["op"] == "route")
    assert gates == model["num_hidden_layers"] - model["first_k_dense_replace"], gates
    # The FLOPs of a product follow from its shape, "M x N x K format".
    for o in report["train"]["operations"]:
        if o["op"] == "gemm":
            m, n, k = (int(x) for x in o["shape"].rsplit(" ", 1)[0].split(" x "))
            assert o["flops"] == 2 * m * n * k * o["calls"], o


main(*sys.argv[1:])
