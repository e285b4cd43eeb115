#!/usr/bin/env bash
# Retrieval before and after an extension of the context, with a model of 7M parameters: it learns to find needles in
# 256 tokens, YaRN stretches its context to 2048, and `cachalot eval needle` asks at 128 to 2048.
#   scripts/needle_experiment.sh PROGRAM FOLDER [DEVICE]     some three minutes on an H200; hours on a CPU
# Passes (last line, exit status 0) when the extended model finds 90 % of the needles at every length and the model
# before it no more than 10 % at 8 times its context.
#
# Pre-training reads numbers that are repeated ("copy"), needles that are said and asked for again and again
# ("again"), needles in up to 256 tokens of Shakespeare ("sparse", "full"), Shakespeare. Without the first two a
# model of this size learned no retrieval in 5000 steps (docs/log.md). The extension reads Shakespeare and documents
# of 145 to 1840 tokens with needles ("long"), none of which is asked for within a tenth of a tested length of
# context: `cachalot data needle-contexts` reads the shards and ends the script if one is. Rows hold several
# documents, as in pre-training.
set -euo pipefail

(($# >= 2)) || { sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 1; }
program=$(realpath "$1") out=$2 device=${3:-cuda}
text=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/data/shakespeare/input.txt
tested=128,256,512,1024,2048
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
awk -v seed=2 -v kind=copy -v documents=40000 -f make.awk >copy.jsonl
awk -v seed=3 -v kind=again -v documents=100000 -f make.awk >again.jsonl
"$program" tokenizer train --input train.txt numbers.txt --vocab-size 3200 --out tok
needles() { "$program" data needles --haystack train.txt --tokenizer tok --out "$1.jsonl" "${@:2}"; }
needles sparse --documents 100000 --shortest 90 --longest 256 --needles 4 --seed 2
needles full --documents 50000 --shortest 200 --longest 256 --needles 4 --seed 3
needles long --documents 25000 --shortest 145 --longest 1840 --needles 8 --avoid "$tested" --seed 11
tokenize() { "$program" data tokenize --tokenizer tok --out "$1" --input "${@:2}"; }
tokenize shards copy=copy.jsonl again=again.jsonl sparse=sparse.jsonl full=full.jsonl text=train.txt
tokenize shards-long long=long.jsonl text=train.txt
"$program" data needle-contexts shards-long --tokenizer tok --avoid "$tested"

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
  "data": { "shards": ["shards"],
            "weights": { "copy": 0.1, "again": 0.35, "sparse": 0.25, "full": 0.25, "text": 0.05 } },
  "train": { "steps": 3000, "seq_len": 256, "batch": 128, "micro_batch": 128, "lr": 1e-3, "min_lr": 1e-4,
             "warmup_steps": 200, "bias_gamma": 0.003, "precision": "bf16", "log_every": 500 }
}
JSON
cat >extend.json <<'JSON'
{
  "extend": { "factor": 8, "lr": 1e-3,
              "stages": [{ "context": 2048, "steps": 1200, "batch": 16, "micro_batch": 16 }] },
  "data": { "shards": ["shards-long"], "packing": "best_fit", "weights": { "long": 0.85, "text": 0.15 } },
  "train": { "seed": 2, "bias_gamma": 0, "precision": "bf16", "log_every": 200 }
}
JSON
"$program" pretrain config.json --run-dir short --device "$device"
find_needles() {
  "$program" eval needle --model "$1" --haystack held.txt --lengths "$tested" --depths 11 --cases 10 --seed 77 \
    --together 44 --prefill-chunk 2048 --device "$device" --precision bf16 --out "$2"
}
find_needles short before.json
"$program" extend extend.json --model short --run-dir long --device "$device"
find_needles long/stage-1 after.json

# "by_length" of the two results: "2048": 0.995, ...
shares() { sed -n '/"by_length"/,/}/s/^ *"\([0-9]*\)": \([0-9.]*\),*$/\1 \2/p' "$1"; }
{ shares before.json | sed 's/^/before /'; shares after.json | sed 's/^/after /'; } | awk '
  $1 == "before" && $2 == 2048 { before = 100 * $3; bad += before > 10 }
  $1 == "after" { n++; bad += $3 < 0.9; found = found sprintf("%s%.1f", n > 1 ? ", " : "", 100 * $3)
                  lengths = lengths (n > 1 ? ", " : "") $2 }
  END {
    bad += n < 5 || before == ""
    printf "%s: of the needles at %s tokens %s %% are found, 90 asked;", bad ? "FAIL" : "pass", lengths, found
    printf " before the extension %.1f %% at 2048, 10 allowed\n", before
    exit bad > 0
  }'
