#!/usr/bin/env python3
"""The peer of `cachalot bench`: the same model through PyTorch and Hugging Face transformers, on this machine.

usage: scripts/bench_transformers.py [--config configs/cpu-100m.json] [--device cpu|cuda] [--threads N]
                                     [--precision f32|bf16|autocast] [--parts train,prefill,decode,layer]
                                     [--sequences 1,128] [--json F]

Needs PyPI's torch and transformers. The model is built from the "model" section of the configuration with random
weights; MTP layers are left out (transformers has none). Training is forward, backward, clipping and fused AdamW on
batch x seq_len random tokens; decoding is a step of each of --sequences, behind --context random tokens; "layer" is the
model's last layer on batch x seq_len random rows, forward, and forward and backward with fresh gradients. "bf16" keeps
weights and moments in BF16, "autocast" computes in BF16 over F32 weights, which is what cachalot's bf16 recipe does.
Each number is the fastest and the median of at least three steps.
"""
import argparse, json, os, statistics, sys, time


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--config", default="configs/cpu-100m.json")
    p.add_argument("--device", default="cpu")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--precision", default="bf16", choices=["f32", "bf16", "autocast"])
    p.add_argument("--parts", default="train,prefill,decode")
    p.add_argument("--batch", type=int, default=0)
    p.add_argument("--seq-len", type=int, default=0)
    p.add_argument("--context", type=int, default=512)
    p.add_argument("--sequences", default="1", help="decode: how many at a time, one number after the other")
    p.add_argument("--experts", default="grouped_mm", help="transformers' implementation of the experts")
    p.add_argument("--seconds", type=float, default=3)
    p.add_argument("--json", default="")
    return p.parse_args()


def main():
    o = parse()
    import torch, transformers
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    torch.set_num_threads(o.threads or len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    config = json.load(open(o.config))
    model = {k: v for k, v in config["model"].items() if k not in
             ("num_nextn_predict_layers", "rope_scaling", "vocab_size")}
    vocab = config["model"].get("vocab_size") or config["tokenizer"]["vocab_size"]
    batch, length = o.batch or config["train"]["batch"], o.seq_len or config["train"]["seq_len"]
    c = DeepseekV3Config(**model, num_key_value_heads=model["num_attention_heads"], vocab_size=vocab,
                         bos_token_id=0, eos_token_id=1, pad_token_id=0, tie_word_embeddings=False)
    c._attn_implementation = "sdpa"
    c._experts_implementation = o.experts
    torch.set_default_dtype(torch.bfloat16 if o.precision == "bf16" else torch.float32)
    with torch.device(o.device):  # made where it lives: a processor takes half a minute for a billion numbers
        m = DeepseekV3ForCausalLM(c)
    sync = torch.cuda.synchronize if o.device.startswith("cuda") else lambda: None
    autocast = torch.autocast(o.device.split(":")[0], torch.bfloat16, enabled=o.precision == "autocast")
    report = {"torch": torch.__version__, "transformers": transformers.__version__, "config": o.config,
              "precision": o.precision, "threads": torch.get_num_threads(), "experts": o.experts,
              "parameters": sum(p.numel() for p in m.parameters())}
    print(f"peer       torch {torch.__version__}, transformers {transformers.__version__}, "
          f"{report['threads']} threads, {report['parameters'] / 1e6:.1f}M parameters, {o.precision}", flush=True)

    def measure(step):
        step()
        times, begin = [], time.time()
        while len(times) < 3 or time.time() - begin < o.seconds:
            sync(); start = time.time(); step(); sync()
            times.append(time.time() - start)
        return {"seconds": statistics.median(times), "fastest_seconds": min(times), "steps": len(times)}

    def show(name, tokens, r):
        r["tokens"], r["tokens_per_second"] = tokens, tokens / r["seconds"]
        report[name] = r
        if o.json:  # after each part: a run that is cut keeps what it has
            with open(o.json, "w") as f: json.dump(report, f, indent=1)
        print(f"{name:<10} {tokens} tokens in {r['seconds']:.4g} s (fastest {r['fastest_seconds']:.4g} s, "
              f"{r['steps']} steps): {r['tokens_per_second']:.1f} tokens/s", flush=True)

    parts = o.parts.split(",")
    m.train(False)
    with torch.no_grad(), autocast:
        if "prefill" in parts:
            prompt = torch.randint(0, vocab, (1, o.context), device=o.device)
            show("prefill", o.context, measure(lambda: m(input_ids=prompt, use_cache=True, logits_to_keep=1)))
        for count in map(int, o.sequences.split(",")) if "decode" in parts else ():
            prompt = torch.randint(0, vocab, (count, o.context), device=o.device)
            state = m(input_ids=prompt, use_cache=True, logits_to_keep=1)
            cache, token = state.past_key_values, state.logits[:, -1:].argmax(-1)

            def decode():  # the cache grows by one token a step, as it does in use
                nonlocal token
                token = m(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)

            show(f"decode_{count}", count, measure(decode))
            state = cache = None
    if "layer" in parts:
        layer = m.model.layers[-1]
        rows = torch.randn(batch, length, model["hidden_size"], device=o.device, requires_grad=True)
        gradient = torch.randn_like(rows)
        positions = torch.arange(length, device=o.device)[None]
        angles = m.model.rotary_emb(rows, position_ids=positions)

        def forward():
            y = layer(rows, position_embeddings=angles, position_ids=positions, attention_mask=None)
            return y[0] if isinstance(y, tuple) else y

        def backward():
            layer.zero_grad(set_to_none=True)
            rows.grad = None
            forward().backward(gradient)

        def inference():
            with torch.no_grad(): forward()

        with autocast:
            show("layer_forward", batch * length, measure(inference))
            show("layer_backward", batch * length, measure(backward))
        layer.zero_grad(set_to_none=True)
    if "train" in parts:
        m.train(True)
        optimizer = torch.optim.AdamW(m.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        x = torch.randint(0, vocab, (batch, length), device=o.device)

        def step():
            optimizer.zero_grad(set_to_none=True)
            with autocast:
                loss = m(input_ids=x, labels=x, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
            optimizer.step()

        show("train", batch * length, measure(step))


if __name__ == "__main__":
    sys.exit(main())
