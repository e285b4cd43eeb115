#!/usr/bin/env python3
"""The peers of `cachalot bench products attention`: cuBLASLt, cuDNN and PyTorch's own kernels, on this GPU.

usage: scripts/bench_torch.py [--parts products,attention] [--rows 4096] [--json F]

Needs PyPI's torch with CUDA. Shapes, numbers and the clock are those of cli/bench_kernels.cc: random operands, a
256 MiB write before each call, CUDA events, median of 20; few rows also in a captured graph that goes round operands
that overfill the caches. FP8 is torch's scaled_mm with 1 x 128 by 128 x 128 scales, which cuBLASLt computes. What this
PyTorch or GPU lacks is left out, with the reason.
"""
import argparse, json, sys

LINEARS = [(2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048)]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--parts", default="products,attention")
    p.add_argument("--rows", type=int, default=4096)
    p.add_argument("--json", default="")
    o = p.parse_args()
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    dev = "cuda"
    flush = torch.empty(64 << 20, dtype=torch.int, device=dev)
    report = {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version(), "products": [], "attention": []}

    def elapsed(f):
        begin, end = torch.cuda.Event(True), torch.cuda.Event(True)
        begin.record(); f(); end.record()
        torch.cuda.synchronize()
        return 1e-3 * begin.elapsed_time(end)

    def cold(f, n=20):
        for _ in range(3): f()
        times = []
        for _ in range(n):
            flush.zero_()
            times.append(elapsed(f))
        return sorted(times)[n // 2]

    def in_graph(calls):
        calls = (calls * 20)[:max(20, len(calls))]
        for f in calls[:3]: f()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for f in calls: f()
        times = []
        for _ in range(5):
            flush.zero_()
            times.append(elapsed(graph.replay) / len(calls))
        return sorted(times)[2]

    def show(part, op, shape, seconds, flops, graph=False):
        report[part].append({"op": op, "shape": shape, "graph": graph, "seconds": seconds, "flops": flops})
        print(f"  {op:<22} {shape:<36} {'graph' if graph else '':<5} {1e6 * seconds:10.1f} us "
              f"{1e-12 * flops / seconds:10.1f} TFLOP/s", flush=True)

    def attempt(what, f):
        try: f()
        except Exception as e: print(f"  {what}: left out, {str(e).splitlines()[0][:100]}", flush=True)
        torch.cuda.empty_cache()

    bf16 = lambda *shape: torch.randn(*shape, device=dev, dtype=torch.bfloat16)

    def dense(m, n, k):
        from torch.nn.functional import ScalingType, scaled_mm
        copies = 1 if m > 512 else 1 + (256 << 20) // (n * k)
        calls = []
        for _ in range(copies):
            a, b = bf16(m, k).to(torch.float8_e4m3fn), bf16(n, k).to(torch.float8_e4m3fn)
            sa = torch.rand(k // 128, m, device=dev).t() + 0.5
            sb = torch.rand((n + 127) // 128, k // 128, device=dev).t() + 0.5
            calls.append(lambda a=a, b=b, sa=sa, sb=sb: scaled_mm(
                a, b.t(), sa, ScalingType.BlockWise1x128, sb, ScalingType.BlockWise128x128, output_dtype=torch.bfloat16))
        shape, flops = f"{m} x {n} x {k}", 2 * m * n * k
        show("products", "gemm fp8", shape, cold(calls[0]), flops)
        if copies > 1: show("products", "gemm fp8", shape, in_graph(calls), flops, True)

    def grouped(count, each, n, k):
        x, w = bf16(count * each, k), bf16(count, n, k)
        offsets = torch.arange(1, count + 1, device=dev, dtype=torch.int32) * each
        show("products", "grouped bf16", f"{count} x {each} rows, {n} x {k}",
             cold(lambda: torch._grouped_mm(x, w.transpose(-2, -1), offs=offsets)), 2 * count * each * n * k)

    def attention(tokens):
        from torch.nn.attention import SDPBackend, sdpa_kernel
        q, k, v = (torch.randn(1, 128, tokens, d, device=dev, dtype=torch.bfloat16, requires_grad=True)
                   for d in (192, 192, 128))
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            forward = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)
            shape, flops = f"{tokens} tokens, 128 heads, 192/128", tokens * tokens * 128 * (192 + 128)
            show("attention", "attention forward", shape, cold(forward), flops)
            y = forward()
            dy = torch.randn_like(y)
            show("attention", "attention backward", shape,
                 cold(lambda: torch.autograd.grad(y, (q, k, v), dy, retain_graph=True)), 2.5 * flops)

    parts, rows = o.parts.split(","), o.rows
    print(f"peer       torch {torch.__version__}, {torch.cuda.get_device_name()}", flush=True)
    if "products" in parts:
        for m in (64, 128, rows):
            for n, k in LINEARS: attempt(f"gemm fp8 {m} x {n} x {k}", lambda: dense(m, n, k))
        for count, each in ((4, 2 * rows), (8, rows), (32, rows // 4), (32, rows // 16)):
            for n, k in ((4096, 7168), (7168, 2048)):
                attempt(f"grouped bf16 {count} x {each}", lambda: grouped(count, each, n, k))
    if "attention" in parts:
        for tokens in (rows, 4 * rows): attempt(f"attention {tokens}", lambda: attention(tokens))
    if o.json:
        json.dump(report, open(o.json, "w"), indent=1)


if __name__ == "__main__":
    sys.exit(main())
