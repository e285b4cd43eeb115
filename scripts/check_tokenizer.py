#!/usr/bin/env python3
"""Compares cachalot's tokenizer with the Rust library behind Hugging Face (the `tokenizers` package of PyPI).

  scripts/check_tokenizer.py CACHALOT [TOKENIZER_JSON] [--text FILE] [--documents N] [--speed]
  scripts/check_tokenizer.py --write-golden    rewrites tests/data/tokenizer/golden_encodings.jsonl

  scripts/check_tokenizer.py CACHALOT --only-documents --documents 10000 --speed

CACHALOT is the program; TOKENIZER_JSON a published tokenizer to check as well (default: DeepSeek-V3's, where
../shared has it); --text what to train on (default: Shakespeare). Exits with 1 on any difference.

  1. the Unicode tables are the library's (scripts/make_unicode_tables.py --check)
  2. a vocabulary trained by `cachalot tokenizer train` is, token by token, the one that the library trains
  3. the file written is read by the library; ids and texts are the same on random documents of many scripts,
     code, white space, control characters, characters of the newest Unicode, special tokens whole and broken
  4. the same with the pre-tokenizers of other byte-level tokenizers put in its place
  5. the same with TOKENIZER_JSON
  6. with TOKENIZER_JSON, ids of N documents cut at random from the text of this machine: manual pages in other
     languages, documentation, source code, ../shared; and of texts with bytes that are not UTF-8
--only-documents: 6 alone. --speed: in the same run, MB/s of both with TOKENIZER_JSON, one thread each, in that thread's
CPU time; English, Chinese, code and Russian of ../shared and the manual pages.
"""
import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # before the library starts: one thread, as --speed says

import argparse
import collections
import gzip
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"

# First and last code point of the alphabets that random words are drawn from.
SCRIPTS = {
    "latin": [(0x61, 0x7A), (0x41, 0x5A)], "accents": [(0xC0, 0x17F)], "greek": [(0x391, 0x3C9)],
    "cyrillic": [(0x410, 0x44F)], "armenian": [(0x531, 0x587)], "hebrew": [(0x591, 0x5EA)],
    "arabic": [(0x610, 0x669)], "devanagari": [(0x900, 0x97F)], "bengali": [(0x980, 0x9FE)],
    "thai": [(0xE01, 0xE5B)], "georgian": [(0x10A0, 0x10FF)], "hangul": [(0xAC00, 0xD7A3)],
    "han": [(0x4E00, 0x9FFF)], "han end": [(0x9F90, 0x9FFF)], "kana": [(0x3041, 0x30FF)],
    "han rare": [(0x20000, 0x20400), (0x2EBF0, 0x2EE5D), (0x31350, 0x32400)], "math": [(0x1D400, 0x1D7FF)],
    "combining": [(0x61, 0x66), (0x300, 0x36F)], "cuneiform": [(0x12000, 0x12399)],
    "emoji": [(0x1F300, 0x1F6FF), (0x1F900, 0x1FAFF)], "joined emoji": [(0x1F466, 0x1F469), (0x200D, 0x200D),
                                                                     (0xFE0F, 0xFE0F), (0x1F3FB, 0x1F3FF)],
    "digits": [(0x30, 0x39)], "other digits": [(0x660, 0x669), (0x966, 0x96F), (0xB2, 0xB3), (0xBC, 0xBE),
                                               (0x2160, 0x2188), (0xFF10, 0xFF19), (0x1CCF0, 0x1CCF9)],
    "punctuation": [(0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E)],
    "other punctuation": [(0x2010, 0x2027), (0x3001, 0x301F), (0xFF01, 0xFF0F), (0xA1, 0xBF)],
    "symbols": [(0x2190, 0x23FF), (0x20A0, 0x20C0)], "control": [(0x00, 0x1F), (0x7F, 0x9F)],
    "invisible": [(0x200B, 0x200F), (0x2060, 0x206F), (0xFEFF, 0xFEFF), (0xE0001, 0xE007F), (0x180B, 0x180F)],
    "private": [(0xE000, 0xE010), (0xF0000, 0xF0010)], "no characters": [(0xFFFE, 0xFFFF), (0x378, 0x379)],
    "new": [(0x1C89, 0x1C8A), (0x10D40, 0x10D8F), (0x1CC00, 0x1CEB3), (0x1FA89, 0x1FAE9), (0xA7CB, 0xA7DC)],
}
SPACES = [" "] * 12 + ["  ", "   ", "\n", "\n\n", "\r\n", "\r", "\t", " \n", "\n ", "\u0085", "\u00a0", "\u1680", "\u180e",
                       "\u2003", "\u2028", "\u2029", "\u202f", "\u3000", "\v", "\f", "\x1c", "\u200b", "", "", ""]
SNIPPETS = [
    "don't I'LL we'Ve he'd 'twas 's", "def f(x):\n    return x ** 2  # squared\n", "#include <stdio.h>\n\tint x = 0x1F;\n",
    "for (int i=0; i<10; ++i) { a[i] += b->c; }", "x = {'a': [1, 2.5e-3], \"b\": None}\r\n", "https://example.org/a?b=c&d=%20e",
    "SELECT * FROM t WHERE a >= 10;", "\\frac{1}{2} \\cdot x_{n+1}^2", "3.14159 1,234,567.89 -42 1e-5", "CamelCaseAndHTMLParser",
    "<div class=\"a\">&nbsp;</div>", "user@example.org", "...!?!?---***===", "１２３ ½ ² Ⅳ ٣٤٥", "ﬁ ß ſ K K Å", "e\u0301a\u0308",
    "Ġ Ċ ċ Ń Ā", "\ufffd", "x" * 70, " " * 40, "\n" * 20, "!" * 33, "1" * 20, "的" * 50,
]


def random_document(rng, specials):
    out = []
    for _ in range(rng.randint(0, 30)):
        kind = rng.random()
        if kind < 0.12:
            out.append(rng.choice(SNIPPETS))
        elif kind < 0.17 and specials:
            token = rng.choice(specials)
            out.append(token if rng.random() < 0.6 else token[rng.randint(0, 2):rng.randint(1, len(token))])
        elif kind < 0.22:
            points = [rng.randrange(0x110000) for _ in range(rng.randint(1, 6))]
            out.append("".join(chr(c) for c in points if not 0xD800 <= c <= 0xDFFF))
        else:
            ranges = SCRIPTS[rng.choice(list(SCRIPTS))]
            for _ in range(rng.randint(1, 9)):
                first, last = rng.choice(ranges)
                out.append(chr(rng.randint(first, last)))
        out.append(rng.choice(SPACES))
    return "".join(out)


def real_documents(most):
    """Lines of real data in several languages, and code, where ../shared has them."""
    out = []
    for name in ("cmmlu/cmmlu.jsonl.gz", "humaneval_mul/humaneval-cpp.jsonl.gz", "gpteacher/codegen-instruct.json.gz",
                 "mgsm/mgsm_bn.tsv.gz", "mgsm/mgsm_de.tsv.gz", "mgsm/mgsm_ja.tsv.gz", "mgsm/mgsm_ru.tsv.gz",
                 "mgsm/mgsm_te.tsv.gz", "mgsm/mgsm_th.tsv.gz", "chinese_simpleqa/chinese_simpleqa.jsonl.gz"):
        if (SHARED / name).exists():
            out += gzip.decompress((SHARED / name).read_bytes()).decode("utf-8").split("\n")[:most]
    return out


def read_text(path):
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        return data.decode("utf-8")
    except (UnicodeDecodeError, OSError, EOFError):
        return ""


def strings(value):
    """All strings in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def records(*patterns):
    """The text of every record of the data files in ../shared that match."""
    for pattern in patterns:
        for path in sorted(SHARED.glob(pattern)):
            text = read_text(path)
            if ".jsonl" in path.name:
                for line in filter(str.strip, text.split("\n")):
                    yield "\n".join(strings(json.loads(line)))
            elif ".json" in path.name:
                yield "\n".join(strings(json.loads(text)))
            else:
                yield text


MANUALS = pathlib.Path("/usr/share/man")


def sources():
    """Name -> files or texts; only what this machine has."""
    found = {}
    for language in ("cs", "da", "de", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt_BR", "ru", "sv", "tr", "uk", "zh_CN", "zh_TW"):
        found["manual pages, " + language] = sorted((MANUALS / language).glob("*/*.gz"))
    found["manual pages, English"] = sorted(MANUALS.glob("man[1-8]/*.gz"))
    found["documentation"] = sorted(p for end in ("txt", "md", "rst", "html") for p in pathlib.Path("/usr/share/doc").glob("*/*." + end))
    found["Python"] = sorted(pathlib.Path(os.__file__).parent.glob("*.py")) + sorted(pathlib.Path(os.__file__).parent.glob("*/*.py"))
    found["C and C++"] = sorted(pathlib.Path("/usr/include").glob("*.h")) + sorted((ROOT / "cachalot").glob("*/*.cc"))
    found["shared, Chinese"] = list(records("cmmlu/*.gz", "chinese_simpleqa/*", "cmrc2018/*"))
    found["shared, English"] = list(records("drop/*", "gsm8k/*", "tinyshakespeare/*"))
    found["shared, code"] = list(records("humaneval_mul/*", "mbpp/*"))
    found["shared, Bengali, Swahili, Telugu, Thai"] = list(records("mgsm/mgsm_bn*", "mgsm/mgsm_sw*", "mgsm/mgsm_te*", "mgsm/mgsm_th*"))
    return {name: items for name, items in found.items() if items}


def cut_documents(count, rng, specials):
    """`count` documents: 1 to 4000 characters from random places of the sources in turn, one in eight random Unicode."""
    found = sources()
    names = list(found)
    cache = {}
    documents, used = [], collections.Counter()
    while len(documents) < count:
        if len(documents) % 8 == 7:
            documents.append(random_document(rng, specials))
            used["random Unicode"] += 1
            continue
        name = names[len(documents) % len(names)] if rng.random() < 0.5 else rng.choice(names)
        item = rng.choice(found[name])
        if isinstance(item, pathlib.Path):
            if item not in cache:
                cache[item] = read_text(item)
            item = cache[item]
        if not item:
            continue
        size = int(4000 ** rng.random())
        begin = rng.randrange(max(1, len(item) - size // 2))
        documents.append(item[begin:begin + size])
        used[name] += 1
    return documents, used


def hostile_bytes(rng, documents):
    """A text of whole and broken characters: pieces of documents as bytes, cut and damaged anywhere."""
    out = bytearray()
    while len(out) < 100_000:
        data = bytearray(rng.choice(documents).encode("utf-8")[:rng.randint(1, 400)])
        for _ in range(rng.randint(0, 6)):
            at = rng.randint(0, len(data))
            data[at:at + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 3))
        out += data[rng.randint(0, 3):]
    return bytes(out)


def stretches(data):
    """The valid stretches of `data` as str, and each other byte as int."""
    text = []
    for c in data.decode("utf-8", "surrogateescape"):
        if 0xDC80 <= ord(c) <= 0xDCFF:
            if text:
                yield "".join(text)
            text = []
            yield ord(c) - 0xDC00
        else:
            text.append(c)
    if text:
        yield "".join(text)


SPEED_TEXTS = {
    "English": lambda: records("mmlu/*", "drop/*", "boolq/*", "hellaswag/*", "tinyshakespeare/*", "gsm8k/*", "lambada/*"),
    "Chinese": lambda: records("cmmlu/*.gz", "cmrc2018/*", "chinese_simpleqa/*", "cmath/*"),
    "code": lambda: records("humaneval_mul/*", "gpteacher/*", "mbpp/*", "cruxeval/*"),
    "Russian": lambda: (read_text(p) for p in sorted((MANUALS / "ru").glob("*/*.gz"))),
}


def compare_speed(program, path):
    """Both in one run, one thread each, in CPU time; the library in the faster of its two ways of encoding a batch."""
    library = Tokenizer.from_file(str(path))
    print("%-10s%8s%14s%14s%14s%10s%10s" % ("MB/s", "MB", "library", "first time", "again", "ratio", "ratio"))
    for name, make in SPEED_TEXTS.items():
        text = "\n".join(make())
        if not text:
            continue
        size = len(text.encode("utf-8")) * 1e-6
        # Documents of about 10 KB, cut at line ends: the library slows down on longer ones.
        documents, lines, length = [], [], 0
        for line in text.split("\n"):
            lines.append(line)
            length += len(line)
            if length > 10_000:
                documents.append("\n".join(lines))
                lines, length = [], 0
        documents.append("\n".join(lines))
        theirs = 0
        for encode in (library.encode_batch, getattr(library, "encode_batch_fast", library.encode_batch)):
            for _ in range(2):
                start = time.process_time()
                encode(documents, add_special_tokens=False)
                theirs = max(theirs, size / (time.process_time() - start))
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            (folder / "text.txt").write_text(text, "utf-8", newline="")
            subprocess.run([program, "tokenizer", "bench", "--tokenizer", str(path), "--json", str(folder / "rates.json"),
                            str(folder / "text.txt")], check=True, stdout=subprocess.DEVNULL)
            rates = json.loads((folder / "rates.json").read_text())["files"][0]
        first, again = rates["first_bytes_per_second"] * 1e-6, rates["bytes_per_second"] * 1e-6
        print("%-10s%8.1f%14.2f%14.1f%14.1f%10.1f%10.1f" % (name, size, theirs, first, again, first / theirs, again / theirs),
              flush=True)


class Check:
    def __init__(self, program):
        self.program = program
        self.differences = 0

    def run(self, *arguments, text=""):
        done = subprocess.run([self.program, "tokenizer", *arguments], input=text.encode("utf-8"), capture_output=True)
        if done.returncode != 0:
            sys.exit("cachalot tokenizer %s failed:\n%s" % (" ".join(arguments), done.stderr.decode("utf-8", "replace")))
        return done.stdout.decode("utf-8")

    def report(self, name, bad, total):
        print("%-58s %s" % (name, "equal (%d)" % total if not bad else "%d of %d DIFFER" % (len(bad), total)), flush=True)
        for item in bad[:3]:
            print("   ", ascii(item)[:1500])
        self.differences += len(bad)

    def compare(self, name, path, documents, plain=False):
        """ids and texts of `documents` under the tokenizer.json at `path`."""
        library = Tokenizer.from_file(str(path))
        flags = ["--plain"] if plain else []
        lines = "".join(json.dumps({"text": d}) + "\n" for d in documents)
        ours = [json.loads(line)["ids"] for line in
                self.run("encode", "--tokenizer", str(path), "--jsonl", *flags, text=lines).split("\n")[:-1]]
        if plain:  # the library has no such mode; without its added tokens it knows none
            bare = json.loads(library.to_str())
            bare["added_tokens"] = []
            library = Tokenizer.from_str(json.dumps(bare))
        theirs = [e.ids for e in library.encode_batch(documents, add_special_tokens=False)]
        bad = [(d, a, b) for d, a, b in zip(documents, ours, theirs) if a != b]
        if len(ours) != len(documents):
            bad.append(("number of lines", len(ours), len(documents)))
        self.report(name + ": ids", bad, len(documents))
        if plain:
            return
        # Split one id list in two as well: half tokens decode to bytes that are not UTF-8.
        rng = random.Random(1)
        lists = theirs + [ids[:rng.randint(0, len(ids))] for ids in theirs]
        lines = "".join(json.dumps({"ids": ids}) + "\n" for ids in lists)
        for skip in (False, True):
            flags = ["--skip-special"] if skip else []
            answers = [json.loads(line) for line in
                       self.run("decode", "--tokenizer", str(path), "--jsonl", *flags, text=lines).split("\n")[:-1]]
            texts = [bytes.fromhex(a["hex"]).decode("utf-8", "replace") if "hex" in a else a["text"] for a in answers]
            expected = library.decode_batch(lists, skip_special_tokens=skip)
            bad = [(i, a, b) for i, a, b in zip(lists, texts, expected) if a != b]
            self.report(name + ": texts" + (", special tokens skipped" if skip else ""), bad, len(lists))


    def compare_documents(self, path, count):
        library = Tokenizer.from_file(str(path))
        named = [t["content"] for t in json.loads(path.read_text("utf-8"))["added_tokens"] if "holder" not in t["content"]]
        rng = random.Random(865553)
        documents, used = cut_documents(count, rng, named)
        print("documents: %d, %.1f MB: %s" % (count, sum(len(d.encode("utf-8")) for d in documents) * 1e-6,
                                              "; ".join("%s %d" % item for item in sorted(used.items()))))
        self.compare("documents of this machine", path, documents)
        self.compare("documents of this machine, special tokens as text", path, documents, plain=True)
        bad, texts = [], [hostile_bytes(rng, documents) for _ in range(8)]
        single = [library.token_to_id(c) for c in ALPHABET]
        with tempfile.TemporaryDirectory() as folder:
            for data in texts:
                (pathlib.Path(folder) / "hostile").write_bytes(data)
                ours = list(map(int, self.run("encode", "--tokenizer", str(path), "--input", folder + "/hostile").split()))
                theirs = []
                for part in stretches(data):
                    theirs += [single[part]] if isinstance(part, int) else library.encode(part, add_special_tokens=False).ids
                if ours != theirs:
                    bad.append((data[:300], ours[:50], theirs[:50]))
        self.report("texts with bytes that are not UTF-8: ids", bad, len(texts))


def byte_alphabet():
    """The character by which tokenizer.json writes each byte (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) if b in printable else chr(256 + others.index(b)) for b in range(256)]


ALPHABET = byte_alphabet()


def write_golden():
    """What the library makes of small documents with the small tokenizer in tests/data, for tests without it."""
    folder = ROOT / "tests/data/tokenizer"
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rng = random.Random(7)
    documents = SNIPPETS + ["To be, or not to be", BOS + "x" + EOS, BOS[:-1]] + [random_document(rng, [BOS, EOS]) for _ in range(60)]
    lines = [json.dumps({"text": d, "ids": library.encode(d, add_special_tokens=False).ids}) for d in documents if len(d) < 200]
    (folder / "golden_encodings.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def byte_level(use_regex, add_prefix_space=False):
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": use_regex}


def sequence(*stages):
    return {"type": "Sequence", "pretokenizers": list(stages)}


OTHER_PRE_TOKENIZERS = {
    "GPT-2": byte_level(True),
    "GPT-2, space before": byte_level(True, True),
    "splits, then a space before each": sequence(split(r"\p{N}"), byte_level(False, True)),
    "GPT-4 and Llama 3": sequence(split(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                                        r"|\s*[\r\n]+|\s+(?!\S)|\s+"), byte_level(False)),
    "GPT-4o": sequence(split(r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
                             r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
                             r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"), byte_level(False)),
    "DeepSeek-V2": sequence(split(r"[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"), split(r"\s+$"),
                            split(r"[一-龥ࠀ-一가-퟿]+"), split(r"\p{N}"), byte_level(False)),
    "a literal string": sequence({"type": "Split", "pattern": {"String": "e."}, "behavior": "Isolated", "invert": False},
                                 byte_level(False)),
    "anchors and look-behind": sequence(split(r"^\s*\p{Lu}|(?<=[a-z])\p{P}+$|(?<!\d)\d{,2}(?=\D)"), byte_level(False)),
    "lazy, possessive, atomic": sequence(split(r"\p{L}+?\p{M}|[^\S\n]++.|(?>\d+|\p{P}+)\.?|\x{41}{2,}?"), byte_level(False)),
    "empty matches": sequence(split(r"[aeiou]*"), byte_level(False)),
    "uncut": byte_level(False),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cachalot", nargs="?")
    parser.add_argument("tokenizer_json", nargs="?")
    parser.add_argument("--text")
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--only-documents", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--write-golden", action="store_true")
    options = parser.parse_args()
    if options.write_golden:
        write_golden()
        return 0
    if not options.cachalot:
        parser.error("the path of the cachalot program is needed")
    check = Check(options.cachalot)
    published = pathlib.Path(options.tokenizer_json or SHARED / "deepseek_v3_tokenizer/tokenizer.json")
    if not options.only_documents:
        check_all(check, options, published)
    if published.exists():
        check.compare_documents(published, options.documents)
        if options.speed:
            compare_speed(options.cachalot, published)
    print("no differences" if not check.differences else "%d differences" % check.differences)
    return 1 if check.differences else 0


def check_all(check, options, published):
    rng = random.Random(20240)

    tables = subprocess.run([sys.executable, str(ROOT / "scripts/make_unicode_tables.py"), "--check"])
    check.differences += tables.returncode != 0

    text = pathlib.Path(options.text).read_bytes() if options.text else \
        gzip.decompress((SHARED / "tinyshakespeare/input.txt.gz").read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "input.txt").write_bytes(text)
        trained = folder / "trained" / "tokenizer.json"
        for size in (400, 4000):
            check.run("train", "--input", str(folder / "input.txt"), "--vocab-size", str(size), "--out", str(trained.parent))
            ours = json.loads(trained.read_text("utf-8"))
            library = Tokenizer(models.BPE())
            library.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Split(Regex(s["pattern"]["Regex"]), "isolated") for s in ours["pre_tokenizer"]["pretokenizers"][:-1]]
                + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
            library.decoder = decoders.ByteLevel()
            library.train_from_iterator([text.decode("utf-8")], trainers.BpeTrainer(
                vocab_size=size, min_frequency=2, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                special_tokens=[AddedToken(t, special=True, normalized=False) for t in (BOS, EOS)]))
            theirs = json.loads(library.to_str())["model"]
            pairs = list(ours["model"]["vocab"].items())
            check.report("training to %d tokens: vocabulary" % size,
                         [p for p in pairs if theirs["vocab"].get(p[0]) != p[1]] + [None] * abs(len(pairs) - len(theirs["vocab"])),
                         len(pairs))
            merges = [m if isinstance(m, str) else " ".join(m) for m in theirs["merges"]]
            check.report("training to %d tokens: merges" % size,
                         [m for m in zip(ours["model"]["merges"], merges) if m[0] != m[1]]
                         + [None] * abs(len(merges) - len(ours["model"]["merges"])), len(merges))

        documents = [random_document(rng, [BOS, EOS]) for _ in range(options.documents)] + SNIPPETS + [text.decode("utf-8")]
        check.compare("trained", trained, documents)
        check.compare("trained, special tokens as text", trained, documents, plain=True)
        other = folder / "other.json"
        for name, pre_tokenizer in OTHER_PRE_TOKENIZERS.items():
            other.write_text(json.dumps(dict(ours, pre_tokenizer=pre_tokenizer)), "utf-8")
            check.compare(name, other, documents[:options.documents // 2] + SNIPPETS)

        if options.tokenizer_json or published.exists():
            specials = [t["content"] for t in json.loads(published.read_text("utf-8"))["added_tokens"]]
            named = [s for s in specials if "holder" not in s] or specials
            documents = [random_document(rng, named) for _ in range(5 * options.documents)] + SNIPPETS
            documents += real_documents(500) + [text.decode("utf-8")]
            check.compare(published.parent.name, published, documents)
            check.compare(published.parent.name + ", special tokens as text", published, documents, plain=True)
        else:
            print("no published tokenizer.json given or found: only our own was checked")


if __name__ == "__main__":
    sys.exit(main())
