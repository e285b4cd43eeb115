#!/usr/bin/env python3
"""Plants near-duplicates and evaluation items in text, runs `cachalot data clean` on it, and counts what it finds.

    scripts/check_clean.py near PROGRAM FOLDER [--text FILE.jsonl[.gz|.zst] ...] [--documents 20000]
    scripts/check_clean.py items PROGRAM FOLDER [--evaluation FILE ...] [--text FILE ...]

PROGRAM is the built cachalot, FOLDER a scratch folder. Without --text the documents are made up. Shares no code
with the program: words, shingles and similarities are computed here again, by docs/data.md. Fails (exit 1) below
95 % recall at similarity >= 0.8, above 0.1 % false removals, below 99 % of items found.
"""
import argparse
import bisect
import collections
import glob
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import unicodedata

SHINGLE, THRESHOLD = 5, 0.8


def is_cjk(c):
    return (0x3400 <= c <= 0x4DBF or 0x4E00 <= c <= 0x9FFF or 0x3041 <= c <= 0x3096 or 0x30A1 <= c <= 0x30FE
            or 0xAC00 <= c <= 0xD7A3 or 0xF900 <= c <= 0xFAFF or 0xFF66 <= c <= 0xFF9D or 0x20000 <= c <= 0x3FFFF
            or c == 0x3005)


def words(text):
    """docs/data.md, "Words"."""
    found, open_word = [], []
    for char in text:
        c = ord(char)
        if 0xFF01 <= c <= 0xFF5E:
            char = chr(c - 0xFEE0)
        if is_cjk(c):
            if open_word:
                found.append("".join(open_word))
                open_word = []
            found.append(char)
        elif unicodedata.category(char)[0] in "LMN":
            open_word.append(char.lower())
        elif open_word:
            found.append("".join(open_word))
            open_word = []
    if open_word:
        found.append("".join(open_word))
    return found


def shingles(text):
    w = words(text)
    if len(w) <= SHINGLE:
        return {tuple(w)} if w else set()
    return {tuple(w[i:i + SHINGLE]) for i in range(len(w) - SHINGLE + 1)}


def jaccard(a, b):
    return len(a & b) / len(a | b) if a or b else 0.0


def read_texts(paths, most):
    texts = []
    for path in paths:
        if path.endswith(".zst"):
            lines = subprocess.run(["zstd", "-dc", path], check=True, stdout=subprocess.PIPE).stdout.splitlines()
        else:
            with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
                lines = file.read().splitlines()
        random.shuffle(lines)
        texts += [json.loads(line)["text"][:20000] for line in lines[:most // len(paths)]]
    return texts


def make_texts(count):
    """Texts of made-up words with the frequencies of words (Zipf)."""
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er")]
    vocabulary = ["".join(random.choices(syllables, k=random.randint(1, 4))) for _ in range(20000)]
    weights = [1 / (i + 10) for i in range(len(vocabulary))]
    total, cumulative = 0, []
    for weight in weights:
        total += weight
        cumulative.append(total)

    def word():
        return vocabulary[bisect.bisect(cumulative, random.random() * total)]
    texts = []
    for _ in range(count):
        length = int(random.lognormvariate(5.3, 0.7)) + 60
        out = []
        for i in range(length):
            out.append(word() + (". " if i % 12 == 11 else " "))
        texts.append("".join(out))
    return texts


def near_copy(text, target):
    """Changes words at random places until the similarity is about `target`."""
    tokens = text.split(" ")
    kept = (2 * target / (1 + target)) ** (1 / SHINGLE)
    changed = []
    for token in tokens:
        if random.random() < kept:
            changed.append(token)
            continue
        kind = random.random()
        if kind < 0.6:
            changed.append("x" + format(random.getrandbits(32), "x"))
        elif kind < 0.8:
            changed += [token, "y" + format(random.getrandbits(32), "x")]
    return " ".join(changed)


def clean(program, source, out, options):
    shutil.rmtree(out, ignore_errors=True)
    command = [program, "data", "clean", "--input", source, "--out", out, "--zstd_level", "0", "--tidy", "false",
               "--filters.gopher_quality.on", "false", "--filters.gopher_repetition.on", "false",
               "--filters.c4.on", "false", "--filters.fineweb.on", "false", "--filters.code.on", "false",
               "--filters.max_replacement", "1"] + options
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kept = set()
    for path in sorted(glob.glob(out + "/part-*.jsonl")):
        with open(path, encoding="utf-8") as file:
            kept.update(json.loads(line)["id"] for line in file)
    return kept


def write(path, documents):
    with open(path, "w", encoding="utf-8") as file:
        for name, text in documents:
            file.write(json.dumps({"text": text, "id": name}, ensure_ascii=False) + "\n")


def near(o):
    texts = read_texts(o.text, o.documents) if o.text else make_texts(o.documents)
    texts = [t for t in texts if len(words(t)) >= 50]
    documents = [(f"base-{i}", t) for i, t in enumerate(texts)]
    planted = {}
    for i in random.sample(range(len(texts)), min(len(texts), o.documents // 2)):
        copy = near_copy(texts[i], random.uniform(0.5, 1.0))
        name = f"copy-{i}"
        documents.append((name, copy))
        planted[name] = f"base-{i}"
    path = os.path.join(o.folder, "near.jsonl")
    write(path, documents)
    sets = {name: shingles(text) for name, text in documents}
    order = {name: i for i, (name, _) in enumerate(documents)}
    kept = clean(o.program, path, os.path.join(o.folder, "near"), [])
    holders = collections.defaultdict(list)
    removed = [name for name, _ in documents if name not in kept]
    needed = set().union(*(sets[name] for name in removed)) if removed else set()
    for name in kept:
        for shingle in sets[name]:
            if shingle in needed:
                holders[shingle].append(name)
    false = 0
    for name in removed:
        counts = collections.Counter(h for s in sets[name] for h in holders.get(s, ()) if order[h] < order[name])
        best = max((jaccard(sets[name], sets[h]) for h, _ in counts.most_common(20)), default=0)
        false += best < THRESHOLD
    bins = collections.defaultdict(lambda: [0, 0])
    for copy, base in planted.items():
        j = jaccard(sets[copy], sets[base])
        if base in kept or j < THRESHOLD:  # a base that went itself was a duplicate of something before it
            count = bins[int(j * 20 + 1e-9)]
            count[0] += 1
            count[1] += copy not in kept
    print(f"{len(documents)} documents, {sum(len(t) for _, t in documents) / 1e6:.1f} M characters, "
          f"{len(removed)} removed")
    found = total = 0
    worst = 1.0
    for b in sorted(bins):
        n, hits = bins[b]
        print(f"  similarity {b / 20:.2f} to {b / 20 + 0.05:.2f}: {n:6d} planted, {hits:6d} removed ({hits / n:.2%})")
        if b / 20 >= THRESHOLD - 1e-9:
            found, total = found + hits, total + n
            if n >= 50:
                worst = min(worst, hits / n)
    print(f"recall at >= {THRESHOLD}: {found / max(total, 1):.2%}, of the worst bin {worst:.2%}; "
          f"false removals: {false} of {len(documents)} ({false / len(documents):.3%})")
    return found >= 0.95 * total and worst >= 0.95 and false < 0.001 * len(documents) and total > 0


def strings(value, out):
    if isinstance(value, str):
        out.append(value)
    elif isinstance(value, list):
        for item in value:
            strings(item, out)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in ("question", "prompt", "text", "context", "passage", "Question", "ctx"):
                strings(item, out)


def items(o):
    evaluation = o.evaluation
    if not evaluation:
        path = os.path.join(o.folder, "evaluation.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            for text in make_texts(500):
                file.write(json.dumps({"question": " ".join(text.split()[:random.randint(10, 60)])}) + "\n")
        evaluation = [path]
    found = []
    for path in evaluation:
        with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as file:
            for line in file:
                strings(json.loads(line), found)
    counted = [(text, words(text)) for text in found]

    def long_enough(w):
        cjk = sum(is_cjk(ord(x[0])) for x in w) * 2 > len(w)
        return len(w) >= (12 if cjk else 8)
    long = [text for text, w in counted if long_enough(w)]
    print(f"{len(found)} items, {len(found) - len(long)} of them too short to look for")
    long = random.sample(long, min(len(long), o.documents))
    around = read_texts(o.text, 2000) if o.text else make_texts(2000)
    around = [t for t in around if len(t) > 500]
    clean_documents = [(f"innocent-{i}", t) for i, t in enumerate(around)]
    documents = list(clean_documents)
    for i, text in enumerate(long):
        spaced = "".join(random.choice(("\n", "  ", "\t ", " ")) if c == " " else c for c in text).upper()
        host = random.choice(around)
        cut = host.find(" ", random.randrange(len(host) // 2)) + 1
        documents += [(f"verbatim-{i}", text), (f"spaced-{i}", spaced),
                      (f"embedded-{i}", host[:cut] + "\n" + text + "\n" + host[cut:])]
    path = os.path.join(o.folder, "items.jsonl")
    write(path, documents)
    kept = clean(o.program, path, os.path.join(o.folder, "items"),
                 ["--dedup.exact", "false", "--dedup.near.on", "false", "--decontaminate"] + evaluation)
    good = True
    for kind in ("verbatim", "spaced", "embedded"):
        names = [n for n, _ in documents if n.startswith(kind)]
        hits = sum(n not in kept for n in names)
        print(f"  {kind:9}: {hits} of {len(names)} found ({hits / max(len(names), 1):.2%})")
        good = good and hits >= 0.99 * len(names) and names
    lost = sum(n not in kept for n, _ in clean_documents)
    print(f"  innocent : {lost} of {len(clean_documents)} dropped ({lost / len(clean_documents):.2%})")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("near", "items"))
    parser.add_argument("program")
    parser.add_argument("folder")
    parser.add_argument("--text", nargs="*", default=[])
    parser.add_argument("--evaluation", nargs="*", default=[])
    parser.add_argument("--documents", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    o = parser.parse_args()
    random.seed(o.seed)
    os.makedirs(o.folder, exist_ok=True)
    return 0 if (near if o.what == "near" else items)(o) else 1


if __name__ == "__main__":
    sys.exit(main())
