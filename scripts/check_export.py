#!/usr/bin/env python3
"""Loads model directories with the real transformers and compares its logits with `cachalot forward`.

    scripts/check_export.py --program build/cpu/cachalot DIR [DIR ...]

Needs torch, transformers and safetensors (PyPI). Each DIR is what `cachalot convert` wrote: BF16, F32, or FP8, whose
blocks are multiplied out here as transformers does on GPUs without FP8. Prints a line for each: the largest
difference, the error |x-y|^2 / (|x|^2+|y|^2), and at how many places both choose the same token. Exits with 1 when
an error is above 1e-9 (both compute in f32 from the same stored weights).
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file


def dequantised(directory, target):
    """A copy of an FP8 directory with BF16's layout and the exact values, in F32."""
    config = json.load(open(f"{directory}/config.json"))
    quantised = config.pop("quantization_config", None)
    if quantised is None:
        return directory
    tensors = {}
    for name in sorted(os.listdir(directory)):
        if not name.endswith(".safetensors"):
            continue
        with safe_open(f"{directory}/{name}", "pt") as file:
            for key in file.keys():
                tensors[key] = file.get_tensor(key)
    out = {}
    for key, value in tensors.items():
        if key.endswith("_scale_inv"):
            continue
        scale = tensors.get(key + "_scale_inv")
        value = value.to(torch.float32)
        if scale is not None:
            block = quantised["weight_block_size"]
            rows = scale.repeat_interleave(block[0], 0)[: value.shape[0]]
            value = value * rows.repeat_interleave(block[1], 1)[:, : value.shape[1]]
        out[key] = value.numpy()
    config["torch_dtype"] = "float32"
    json.dump(config, open(f"{target}/config.json", "w"))
    save_file(out, f"{target}/model.safetensors", metadata={"format": "pt"})
    return target


def check(program, directory, tokens):
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        loaded = AutoModelForCausalLM.from_pretrained(dequantised(directory, folder), dtype=torch.float32)
        loaded.eval()
        with torch.no_grad():
            theirs = loaded(torch.from_numpy(tokens[:, :-1].astype(np.int64))).logits.numpy()
        save_file({"tokens": tokens}, f"{folder}/tokens.safetensors")
        subprocess.run([program, "forward", "--model", directory, "--tokens", f"{folder}/tokens.safetensors", "--out",
                        f"{folder}/out.safetensors", "--precision", "f32"], check=True, stdout=subprocess.DEVNULL)
        ours = load_file(f"{folder}/out.safetensors")["logits"]
    x, y = ours.astype(np.float64), theirs.astype(np.float64)
    error = ((x - y) ** 2).sum() / ((x**2).sum() + (y**2).sum())
    same = (x.argmax(-1) == y.argmax(-1)).mean()
    print(f"{directory}: logits {x.shape}, largest difference {abs(x - y).max():.2e} of {abs(y).max():.1f}, "
          f"error {error:.1e}, same choice at {100 * same:.2f} % of the places")
    return error <= 1e-9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="build/cpu/cachalot")
    parser.add_argument("--length", type=int, default=96, help="tokens of a sequence")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("directories", nargs="+")
    o = parser.parse_args()
    good = True
    for directory in o.directories:
        config = json.load(open(f"{directory}/config.json"))
        rng = np.random.default_rng(o.seed)
        length = min(o.length, config["max_position_embeddings"])
        tokens = rng.integers(0, config["vocab_size"], (2, length + 1)).astype(np.int32)
        good &= check(o.program, directory, tokens)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
