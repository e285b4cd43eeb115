#!/usr/bin/env python3
"""Makes cachalot/data/language_tables.inc: the commonest trigrams of languages that share a script.

    apt-get source libexttextcat && scripts/make_language_tables.py libexttextcat-*/langclass/ShortTexts

The texts there are the Universal Declaration of Human Rights, which the United Nations let everybody use
(Debian's libexttextcat, BSD licence). Only counts of three letters are kept, not the text.
"""
import collections
import math
import os
import re
import sys
import unicodedata

SCRIPTS = {
    "latin": "af az ca cs cy da de en eo es et eu fi fr ga gl hr hu id is it la lt lv ms mt nb nl pl pt ro sk sl sq "
             "sv sw tl tr vi".split(),
    "cyrillic": "be bg kk mk mn ru sr-Cyrl uk".split(),
    "arabic": "ar fa ur".split(),
    "devanagari": "hi mr ne".split(),
}
KEEP = 320
UNSEEN = 4000  # trigrams that share the probability of those not kept


def words(text):
    word = ""
    for c in unicodedata.normalize("NFC", text.lower()).replace("i̇", "i") + " ":
        if unicodedata.category(c)[0] in "LM":
            word += c
        elif word:
            yield word
            word = ""


def trigrams(text):
    for word in words(text):
        padded = f"_{word}_"
        yield from (padded[i:i + 3] for i in range(len(padded) - 2))


def read(path):
    with open(path, "rb") as file:
        raw = file.read()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:  # a few of Western Europe
        return raw.decode("cp1252")


def main():
    print("// Made by scripts/make_language_tables.py. Each language: a character for trigrams that are not listed,")
    print("// then trigrams with a character each; a character stands for (its code - 33) / 4 bits of surprise.")
    for script, languages in SCRIPTS.items():
        for language in languages:
            counts = collections.Counter(trigrams(read(os.path.join(sys.argv[1], language + ".txt"))))
            total = sum(counts.values())
            kept = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:KEEP]

            def code(p):
                c = chr(33 + min(93, round(-4 * math.log2(p))))
                return "\\" + c if c in '"\\' else c
            rest = max(0.05, 1 - sum(n for _, n in kept) / total)
            table = code(rest / UNSEEN) + "".join(gram + code(n / total) for gram, n in kept)
            name = {"nb": "no", "sr-Cyrl": "sr"}.get(language, language)
            print(f'{{"{name}", Script::{script},')
            step = 100
            cut = re.findall(r'(?:\\.|[^\\]){1,%d}' % step, table)
            print("\n".join(f' "{piece}"' for piece in cut) + "},")


if __name__ == "__main__":
    main()
