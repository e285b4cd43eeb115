#!/usr/bin/env bash
# Retrieval before and after an extension of the context, with a model of 7M parameters: it learns to find needles in
# 256 tokens, YaRN stretches its context to 2048, and `cachalot eval needle` asks at 96 to 2048.
#   scripts/needle_experiment.sh PROGRAM FOLDER [DEVICE]     some 75 s on an H200; hours on a CPU
# The training data: numbers that are repeated ("copy"), needles that are said and asked for again and again
# ("again"), needles in up to 240 tokens of Shakespeare ("sparse"), Shakespeare. Without the first two a model of this
# size learned no retrieval in 5000 steps (docs/log.md). Rows of the extension hold needles of such short documents
# alone: none is further than 240 tokens from its question.
set -euo pipefail

(($# >= 2)) || { sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 1; }
program=$(realpath "$1") out=$2 device=${3:-cuda}
text=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/data/shakespeare/input.txt
mkdir -p "$out"
cd "$out"
bytes=$(wc -c <"$text")
head -c $((bytes * 9 / 10)) "$text" >train.txt
tail -c $((bytes / 10)) "$text" >held.txt

cat >make.awk <<'AWK'
function number() { return 10000 + int(rand() * 90000) }
function said(city, n) { return sprintf("The secret number of %s is %d.\\n", city, n) }
function asked(city, n) { return sprintf("What is the secret number of %s? ", city) said(city, n) }
BEGIN {
  srand(seed)
  k = split("Lisbon Oslo Cairo Lima Dakar Hanoi Quito Riga Seoul Tunis Vienna Warsaw Zagreb Athens Berlin Bogota " \
            "Dublin Geneva Havana Jakarta Kyiv London Madrid Manila Moscow Muscat Nairobi Ottawa Paris Prague Rabat " \
            "Rome Sofia Sydney Taipei Tehran Tokyo Toronto Turin Valencia Boston Denver Dallas Perth Osaka Kyoto " \
            "Lagos Accra Bern Doha Delhi Minsk Monaco Porto", city, " ")
  for (d = 0; d < documents; ++d) {
    s = ""
    if (kind == "numbers") {  # for the tokenizer: every key, and numbers of two and three digits, become tokens
      s = asked(city[1 + int(rand() * k)], number())
      print substr(s, 1, length(s) - 2)
      continue
    }
    if (kind == "copy") {
      m = 8 + int(rand() * 30)
      row = ""
      for (i = 0; i < m; ++i) row = row " " (100 + int(rand() * 900))
      times = int(110 / m) + 1
      times = times > 4 ? 4 : times < 2 ? 2 : times
      for (i = 0; i < times; ++i) s = s row
    } else {
      m = 1 + int(rand() * 6)
      f = int(rand() * k)
      for (i = 0; i < m; ++i) {
        key[i] = city[1 + (f + i * 7) % k]
        value[i] = number()
        s = s said(key[i], value[i])
      }
      for (i = 0; i < 18 - m; ++i) {
        j = int(rand() * m)
        if (rand() < 0.35) { s = s asked(key[j], value[j]); ++i }
        else s = s said(key[j], value[j])
      }
    }
    printf "{\"text\": \"%s\"}\n", s
  }
}
AWK
awk -v seed=1 -v kind=numbers -v documents=60000 -f make.awk >numbers.txt
awk -v seed=2 -v kind=copy -v documents=60000 -f make.awk >copy.jsonl
awk -v seed=3 -v kind=again -v documents=150000 -f make.awk >again.jsonl
"$program" tokenizer train --input train.txt numbers.txt --vocab-size 3200 --out tok
"$program" data needles --haystack train.txt --tokenizer tok --out sparse.jsonl --documents 120000 --shortest 90 \
  --longest 240 --needles 4 --seed 2
"$program" data tokenize --input copy=copy.jsonl again=again.jsonl sparse=sparse.jsonl text=train.txt --tokenizer tok \
  --out shards

cat >config.json <<'JSON'
{
  "model": {
    "hidden_size": 256, "intermediate_size": 704, "moe_intermediate_size": 176, "num_hidden_layers": 4,
    "first_k_dense_replace": 1, "num_nextn_predict_layers": 0, "num_attention_heads": 4, "q_lora_rank": 128,
    "kv_lora_rank": 128, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 64, "n_routed_experts": 8,
    "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "norm_topk_prob": true,
    "routed_scaling_factor": 1.0, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": null,
    "max_position_embeddings": 256, "initializer_range": 0.02
  },
  "data": { "shards": ["shards"], "packing": "best_fit",
            "weights": { "copy": 0.2, "again": 0.5, "sparse": 0.25, "text": 0.05 } },
  "train": { "steps": 5000, "seq_len": 256, "batch": 64, "micro_batch": 64, "lr": 1e-3, "min_lr": 2e-4,
             "warmup_steps": 200, "bias_gamma": 0.003, "precision": "bf16", "log_every": 500 }
}
JSON
cat >extend.json <<'JSON'
{
  "extend": { "factor": 8, "stages": [{ "context": 1024, "steps": 300, "batch": 16, "micro_batch": 16 },
                                      { "context": 2048, "steps": 300, "batch": 8, "micro_batch": 8 }] },
  "data": { "shards": ["shards"], "weights": { "copy": 0, "again": 0.1, "sparse": 0.5, "text": 0.4 } },
  "train": { "seed": 2, "bias_gamma": 0, "precision": "bf16", "log_every": 50 }
}
JSON
"$program" pretrain config.json --run-dir short --device "$device"
needle() {
  "$program" eval needle --model "$1" --haystack held.txt --lengths 96,128,256,512,1024,2048 --depths 11 --cases 4 \
    --seed 77 --together 44 --prefill-chunk 2048 --device "$device" --precision bf16 --out "$2"
}
needle short before.json
"$program" extend extend.json --model short --run-dir long --device "$device"
needle long/stage-2 after.json
