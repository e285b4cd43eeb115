#!/usr/bin/env python3
"""Writes cachalot/data/unicode_tables.inc: the general category of every code point, as the Rust `tokenizers`
library sees it. Asks the library itself (one \\p{..} pattern per category), so that its Unicode version is ours.

    pip install tokenizers && scripts/make_unicode_tables.py [--check]

--check compares instead of writing and exits with 1 on a difference.
"""
import pathlib
import sys

import tokenizers
from tokenizers import Regex, pre_tokenizers

CATEGORIES = ("Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Cs Co Cn").split()
TARGET = pathlib.Path(__file__).resolve().parent.parent / "cachalot/data/unicode_tables.inc"
CHUNK = 5000


def members(category):
    """All code points (but surrogates, which no text holds) that match \\p{category}."""
    split = pre_tokenizers.Split(Regex(r"\p{%s}" % category), "removed")
    found = set()
    points = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
    for i in range(0, len(points), CHUNK):
        chunk = "".join(map(chr, points[i:i + CHUNK]))
        kept = set()
        for piece, _ in split.pre_tokenize_str(chunk):
            kept.update(piece)
        found.update(ord(c) for c in chunk if c not in kept)
    return found


def table():
    category = [CATEGORIES.index("Cs")] * 0x110000
    seen = 0
    for index, name in enumerate(CATEGORIES):
        for c in members(name):
            category[c] = index
            seen += 1
    assert seen == 0x110000 - 0x800, "the categories must part all code points"
    starts = [c for c in range(0x110000) if c == 0 or category[c] != category[c - 1]]
    words = ["0x%x" % (c << 8 | category[c]) for c in starts]
    lines = [
        "// Made by scripts/make_unicode_tables.py with tokenizers %s; do not edit." % tokenizers.__version__,
        "// Runs of equal general category: first code point << 8 | index into kCategories.",
    ]
    line = ""
    for word in words:
        if len(line) + len(word) + 2 > 109:
            lines.append(line.rstrip())
            line = ""
        line += word + ", "
    lines.append(line.rstrip())
    return "\n".join(lines) + "\n"


def main():
    text = table()
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(text)
        return 0

    def without_comments(t):
        return [line for line in t.splitlines() if not line.startswith("//")]

    same = without_comments(text) == without_comments(TARGET.read_text())
    print("unicode tables:", "equal" if same else "DIFFERENT from tokenizers %s" % tokenizers.__version__)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
