#!/usr/bin/env python3
"""Texts out of an unpacked Debian package, as JSON lines {"text", "id", "part"}; for scripts/corpus.sh.

Documentation: HTML, XML (DocBook, Mallard), manual pages, plain text, packed with gzip or not. Source: files
with the endings of programming languages, as they are. A file in no UTF-8 is left out.
"""
import argparse
import gzip
import html.parser
import json
import os
import re
import sys

CODE = set(("c h cc cpp cxx hpp hh py pyx js mjs ts tsx jsx go rs java kt scala rb pl pm lua sh bash awk sql cs "
            "php swift m el lisp hs ml r jl cmake s S asm tcl vim zig").split())
BLOCKS = set(("p div br li ul ol dl dt dd h1 h2 h3 h4 h5 h6 tr table pre blockquote section article title para "
              "listitem programlisting screen item steps page note hr figure caption").split())
SILENT = set("script style head nav svg math info".split())


class Text(html.parser.HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.out, self.silent, self.verbatim = [], 0, 0

    def handle_starttag(self, tag, attrs):
        if tag in SILENT:
            self.silent += 1
        if tag in ("pre", "programlisting", "screen"):
            self.verbatim += 1
        if tag in BLOCKS:
            self.out.append("\n\n" if tag in ("p", "h1", "h2", "h3", "h4", "para", "title", "pre", "table") else "\n")
        if tag in ("li", "item", "listitem"):
            self.out.append("- ")
        if tag in ("td", "th"):
            self.out.append(" ")

    def handle_endtag(self, tag):
        if tag in SILENT and self.silent:
            self.silent -= 1
        if tag in ("pre", "programlisting", "screen") and self.verbatim:
            self.verbatim -= 1
        if tag in BLOCKS:
            self.out.append("\n")

    def handle_data(self, data):
        if not self.silent:
            self.out.append(data if self.verbatim else re.sub(r"\s+", " ", data))


def tidy(text):
    text = re.sub(r"[ \t]+\n", "\n", text)
    text = re.sub(r"\n +(?=[^ ])", lambda m: m.group(0) if len(m.group(0)) > 2 else "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def from_markup(raw):
    parser = Text()
    parser.feed(raw)
    parser.close()
    return tidy("".join(parser.out))


ESCAPES = {r"\-": "-", r"\&": "", r"\e": "\\", r"\ ": " ", r"\(bu": "•", r"\(aq": "'", r"\(lq": "“", r"\(rq": "”",
           r"\(cq": "’", r"\(oq": "‘", r"\(co": "©", r"\(em": "—", r"\(en": "–", r"\(dq": '"', r"\(->": "→",
           r"\~": " ", r"\%": "", r"\:": "", r"\/": "", r"\,": "", r"\c": "", r"\0": " ", r"\|": "", r"\^": "",
           r"\(+-": "±", r"\(mu": "×", r"\(ha": "^", r"\(ti": "~", r"\(ga": "`", r"\(rs": "\\", r"\'": "´", r"\`": "`"}


def from_roff(raw):
    lines, out, skip, verbatim = raw.split("\n"), [], False, False
    for line in lines:
        if re.match(r"[.']\s*\\\"|'\\\"", line) or line.startswith('.\\"'):
            continue
        macro = re.match(r"[.']\s*([A-Za-z]{1,3})\b ?(.*)", line)
        if line.startswith((".", "'")) and not macro:
            continue
        if macro:
            name, rest = macro.groups()
            if name in ("ig", "de", "de1", "am"):
                skip = True
                continue
            if name in ("TH", "so", "ds", "nr", "if", "ie", "el", "ad", "hy", "ft", "in", "ti", "na", "ne", "tr",
                        "ta", "lf", "rm", "cs", "ps", "vs", "UE", "URL", "DT", "PD", "TS", "TE", "Dd", "Os", "mso"):
                continue
            if name in ("nf", "EX"):
                verbatim = True
            if name in ("fi", "EE"):
                verbatim = False
            if name in ("SH", "SS", "Sh", "Ss"):
                out.append("\n\n" + rest.strip('" ') + "\n")
                continue
            if name in ("PP", "P", "LP", "sp", "Pp", "TP", "IP", "HP", "br", "RS", "RE", "nf", "fi", "EX", "EE", "TQ"):
                head = re.findall(r'"([^"]*)"|(\S+)', rest) if name == "IP" else []
                out.append("\n" if name in ("br", "RS", "RE", "nf", "EX", "EE", "fi") else "\n\n")
                if head:
                    out.append((head[0][0] or head[0][1]) + " ")
                continue
            words = [a or b for a, b in re.findall(r'"([^"]*)"|(\S+)', rest)]
            line = ("" if name in ("BR", "RB", "BI", "IB", "RI", "IR") else " ").join(words)
            if not line:
                continue
        if skip:
            skip = not line.startswith("..")
            continue
        out.append(line + ("\n" if verbatim else " "))
    text = "".join(out)
    text = re.sub(r"\\f(\[[^]]*\]|\(..|.)|\\s[-+]?\d|\\m\[[^]]*\]|\\F.", "", text)
    text = re.sub(r"\\\[u([0-9A-F]{4,6})\]", lambda m: chr(int(m.group(1), 16)), text)
    text = re.sub(r"\\\((..)|\\\*\((..)|\\\*.|\\.", lambda m: ESCAPES.get(m.group(0), ""), text)
    return tidy(re.sub(r"(?<=\S) {2,}(?=\S)", " ", text))


def read(path):
    with open(path, "rb") as file:
        raw = file.read(8 << 20)
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    return raw.decode("utf-8")


def text_of(path, source):
    name = path[:-3] if path.endswith(".gz") else path
    ending = name.rsplit(".", 1)[-1] if "." in os.path.basename(name) else ""
    if source:
        return read(path) if ending in CODE else None
    if ending in ("html", "htm", "xhtml", "xml", "page", "docbook"):
        return from_markup(read(path))
    if re.search(r"/man/([a-zA-Z_.]+/)?man\d/", path):
        return from_roff(read(path))
    if ending in ("txt", "md", "rst", "text") and "/usr/share/doc/" in path:
        return read(path)
    return None


def main():
    options = argparse.ArgumentParser()
    options.add_argument("folder")
    options.add_argument("--part", required=True)
    options.add_argument("--name", required=True)
    options.add_argument("--below", default="")
    options.add_argument("--quota", type=int, default=1 << 60, help="stop after so many bytes")
    o = options.parse_args()
    done = 0
    for folder, folders, files in os.walk(o.folder):
        folders.sort()
        for file in sorted(files):
            path = os.path.join(folder, file)
            relative = os.path.relpath(path, o.folder)
            if os.path.islink(path) or o.below and f"/{o.below}/" not in f"/{relative}":
                continue
            try:
                text = text_of(path, o.part == "code")
            except (UnicodeDecodeError, OSError, EOFError, AssertionError):
                continue
            if not text or not text.strip() or "\0" in text:
                continue
            line = json.dumps({"text": text, "id": f"{o.name}/{relative}", "part": o.part}, ensure_ascii=False)
            print(line)
            done += len(line.encode()) + 1
            if done >= o.quota:
                return


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")
    main()
