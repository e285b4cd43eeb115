#!/usr/bin/env python3
"""The page of a run, drawn by a browser: `cachalot pretrain`, `cachalot report`, headless Chromium, and a look at the
picture: every chart has a curve in its colour, every heat map pixels of more than one, in light and in dark.

usage: tests/report_page.py CACHALOT CONFIG [SCREENSHOT.png]

Exits with 77 ("skipped") where there is no Chromium (scripts/setup.sh --checks installs it). With PyPI's tensorboard in
reach (python3 -m pip install tensorboard) the run's events are read back with it too.
"""
import collections, os, re, shutil, struct, subprocess, sys, tempfile, zlib


def read_png(path):
    """Rows of RGB triples; 8 bits, RGB or RGBA, not interlaced: what Chromium writes."""
    data = open(path, "rb").read()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, packed = 8, b""
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        body = data[at + 8:at + 8 + length]
        if kind == b"IHDR": width, height, depth, colour = struct.unpack(">IIBB", body[:10])
        if kind == b"IDAT": packed += body
        at += 12 + length
    n = {2: 3, 6: 4}[colour]
    raw, stride, rows, above = zlib.decompress(packed), width * n, [], bytearray(width * n)
    assert depth == 8
    for y in range(height):
        kind, line = raw[y * (stride + 1)], bytearray(raw[y * (stride + 1) + 1:(y + 1) * (stride + 1)])
        if y > 0 and kind == 2 and line.count(0) == stride:  # the row above once more, as most rows of a page are
            rows.append(rows[-1])
            continue
        for i in range(stride) if kind else ():
            left, up, corner = line[i - n] if i >= n else 0, above[i], above[i - n] if i >= n else 0
            if kind == 1: line[i] = (line[i] + left) & 255
            elif kind == 2: line[i] = (line[i] + up) & 255
            elif kind == 3: line[i] = (line[i] + (left + up) // 2) & 255
            elif kind == 4:
                p = left + up - corner
                a, b, c = abs(p - left), abs(p - up), abs(p - corner)
                line[i] = (line[i] + (left if a <= b and a <= c else up if b <= c else corner)) & 255
        rows.append([tuple(line[i:i + 3]) for i in range(0, stride, n)])
        above = line
    return rows


def near(a, b): return all(abs(x - y) < 24 for x, y in zip(a, b))


def shoot(chromium, page, picture, dark):
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,3000",
               f"--screenshot={picture}", f"file://{page}"]
    if dark: command.insert(1, "--blink-settings=preferredColorScheme=0")
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return read_png(picture)


def main(program, config, keep=None):
    chromium = next((c for c in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if c), None)
    if not chromium:
        print("no Chromium on this machine")
        return 77
    program = os.path.abspath(program)
    home = os.path.dirname(os.path.dirname(os.path.abspath(config)))  # the configuration's paths begin here
    with tempfile.TemporaryDirectory() as folder:
        run, page = os.path.join(folder, "run"), os.path.join(folder, "run", "report.html")
        subprocess.run([program, "pretrain", os.path.abspath(config), "--run-dir", run, "--train.steps", "12", "--train.warmup_steps", "2",
                        "--train.batch", "4", "--train.micro_batch", "4", "--train.eval_every", "4",
                        "--train.eval_sequences", "2", "--train.price_per_hour", "1"], check=True, stdout=subprocess.DEVNULL, cwd=home)
        subprocess.run([program, "report", run, "--prompt", "Once", "--max-new-tokens", "8"], check=True)
        html = open(page, encoding="utf-8").read()
        charts, maps = html.count("<svg"), html.count("data:image/png")
        assert charts >= 7 and maps >= 3, (charts, maps)
        assert not re.search(r'(src|href)="https?:', html)  # self-contained
        for dark in (False, True):
            picture = os.path.join(folder, "page.png")
            rows = shoot(chromium, page, picture, dark)
            colours = collections.Counter(p for row in rows for p in row)
            count = lambda wanted: sum(n for p, n in colours.items() if wanted(p))
            curve = count(lambda p: near(p, (0, 114, 178)))  # the first series of every chart
            assert curve > 300 * charts / 2, f"{curve} pixels of curves in {charts} charts"
            red = count(lambda p: p[0] > 200 and p[1] < 170 and p[2] < 170)
            blue = count(lambda p: p[2] > p[0] + 40 and p[2] > 150 and not near(p, (0, 114, 178)))
            assert red > 200 and blue > 200, f"heat maps: {red} red and {blue} blue pixels"
            ground = rows[5][5]
            assert (sum(ground) < 200) == dark, f"the page's ground is {ground}"
            if keep and not dark: shutil.copy(picture, keep)
        try:
            from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        except ImportError:
            print("tensorboard is not installed: its events were not read back")
            return 0
        events = EventAccumulator(os.path.join(run, "tb"))
        events.Reload()
        series = lambda tag: ([(e.step, e.value) for e in events.Scalars(tag)] if tag in events.Tags()["scalars"] else
                              [(e.step, e.tensor_proto.float_val[0]) for e in events.Tensors(tag)])
        loss = series("loss_metrics/global_avg_loss")
        assert [step for step, _ in loss] == list(range(1, 13)) and all(5 < v < 9 for _, v in loss), loss
        for tag in ("lr", "grad_norm", "throughput(tps)", "mfu(%)", "n_tokens_seen", "validation_metrics/bits_per_byte",
                    "moe/max_vio/layer_1", "tflops", "time_metrics/end_to_end(s)"):
            assert series(tag), tag
        print(f"tensorboard read {len(loss)} steps")
    return 0


sys.exit(main(*sys.argv[1:]))
