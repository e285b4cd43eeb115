#!/usr/bin/env python3
"""Fails when a file under cachalot/ includes what its folder may not (docs/architecture.md, "Layers").

  scripts/check_layers.py [ROOT]      check the tree at ROOT (default: this repository)
  scripts/check_layers.py --self-test feed every rule a tree that breaks it, and expect that it is caught

Rules
  1. LAYERS lists every folder once; a folder may list only folders above it (no cycles).
  2. #include "x/..." names a folder x that LAYERS allows (or the file's own), and a file that exists.
  3. backend/{ref,cpu,fake,cuda} are private to backend/; tests may look inside, and everybody may include
     backend/cuda/cuda.h and backend/cpu/kernels.h, which are plain C++ and say what GPU there is and what kernels
     the processor gets.
  4. CUDA and NCCL headers: only in backend/cuda, comm/nccl* and .cu/.cuh files of parallel/.
  5. No preprocessor condition on CUDA, except the one that defines CACHALOT_HD in tensor/dtype.h and, in device
     code of backend/cuda, __CUDA_ARCH__ (one source is compiled for several cards).
  6. CLI11 stays in cli/ (it costs every file that sees it seconds).
  7. CUDA calls that take memory or wait for the card: only where a device is opened and data is moved
     (backend/cuda/cuda_device.cu, and doctor's copy test in cuda.cu). An operation queues and returns.
"""

import re
import sys
import tempfile
from pathlib import Path

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
CONDITION = re.compile(r"^\s*#\s*(?:if|ifdef|ifndef|elif|elifdef|elifndef)\b(.*)")
CUDA_WORD = re.compile(r"CUDA|NVCC", re.IGNORECASE)
CUDA_HEADER = re.compile(r"^(?:cuda|cublas|cudnn|curand|nccl|nvml|nvtx|cub/|thrust/|cutlass/|mma\.h|cooperative_gr)")
PRIVATE_BACKENDS = ("ref", "cpu", "fake", "cuda")
PUBLIC_SEAMS = ("backend/cuda/cuda.h", "backend/cpu/kernels.h")
WAITS = re.compile(r"\bcu(?:da)?(?:\w*Synchronize|Malloc\w*|Mem(?:Alloc\w*|Free\w*)|Free\w*|HostAlloc|HostRegister|"
                   r"Memcpy(?:2D|3D|ToSymbol|FromSymbol)?|Memset(?:2D|3D)?)\s*\(")
MAY_WAIT = ("backend/cuda/cuda_device.cu", "backend/cuda/cuda.cu")
SUFFIXES = {".h", ".cc", ".cu", ".cuh"}


def read_layers(path, problems):
    layers = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"([a-z]+):((?: [a-z]+)*)", line.rstrip())
        if not match:
            problems.append(f"LAYERS:{number}: not of the form \"folder: folder folder\": {line}")
            continue
        name, allowed = match[1], match[2].split()
        if name in layers:
            problems.append(f"LAYERS:{number}: {name} is listed twice")
        for below in allowed:
            if below not in layers:
                problems.append(f"LAYERS:{number}: {name} may include {below}, which is not above it")
        layers[name] = allowed
    return layers


def may_use_cuda(path):  # path relative to cachalot/
    parts = path.parts
    return (parts[:2] == ("backend", "cuda")
            or parts[0] == "comm" and path.name.startswith("nccl")
            or parts[0] == "parallel" and path.suffix in (".cu", ".cuh"))


def check_file(source, path, layers, problems):
    folder = path.parts[0]
    is_test = path.stem.endswith("_test")
    for number, line in enumerate((source / path).read_text(encoding="utf-8").splitlines(), 1):
        def report(text):
            problems.append(f"cachalot/{path}:{number}: {text}")

        condition = CONDITION.match(line)
        if condition and CUDA_WORD.search(condition[1]):
            device_code = str(path).startswith("backend/cuda/") and path.suffix in (".cu", ".cuh")
            if not (str(path) == "tensor/dtype.h" and "__CUDACC__" in condition[1]
                    or device_code and "__CUDA_ARCH__" in condition[1]):
                report(f"condition on CUDA: {line.strip()} (choose between files in CMake instead)")
        if str(path).startswith("backend/cuda/") and str(path) not in MAY_WAIT and not is_test:
            call = WAITS.search(line.split("//")[0])
            if call:
                report(f"{call[0]}...) takes memory or waits for the card")
        include = INCLUDE.match(line)
        if not include:
            continue
        quoted, target = include[1] == '"', include[2]
        if not quoted:
            if CUDA_HEADER.match(target) and not may_use_cuda(path):
                report(f"<{target}> outside backend/cuda, comm/nccl* and parallel/*.cu")
            if target.startswith("CLI/") and folder != "cli":
                report(f"<{target}> outside cli/")
            continue
        below = target.split("/")[0]
        if below not in layers:
            report(f'"{target}" does not begin with a folder of LAYERS (system headers take <>)')
        elif below != folder and below not in layers[folder]:
            report(f'"{target}": LAYERS does not let {folder}/ include {below}/')
        elif not (source / target).is_file():
            report(f'"{target}" does not exist')
        private = target.startswith(tuple(f"backend/{name}/" for name in PRIVATE_BACKENDS))
        if private and folder != "backend" and not is_test and target not in PUBLIC_SEAMS:
            report(f'"{target}" is private to backend/')


def check(root):
    problems = []
    source = root / "cachalot"
    layers = read_layers(source / "LAYERS", problems)
    for path in sorted(source.rglob("*")):
        path = path.relative_to(source)
        if path.suffix not in SUFFIXES:
            continue
        if len(path.parts) == 1 or path.parts[0] not in layers:
            problems.append(f"cachalot/{path}: not in a folder of LAYERS")
        else:
            check_file(source, path, layers, problems)
    return problems


def self_test():
    good = {
        "LAYERS": "# comment\nbase:\ntensor: base\nbackend: base tensor\n"
                  "comm: base tensor backend\ncli: base tensor backend\n",
        "base/error.h": "#include <string>\n",
        "tensor/dtype.h": '#include "base/error.h"\n#ifdef __CUDACC__\n#endif\n',
        "backend/backend.h": '#include "tensor/dtype.h"\n',
        "backend/ref/ref.h": '#include "backend/backend.h"\n',
        "backend/backend.cc": '#include "backend/ref/ref.h"\n',
        "backend/cuda/cuda.h": "#include <string>\n",
        "backend/cuda/cuda.cu": '#include <cuda_runtime.h>\n#include "backend/cuda/cuda.h"\n',
        "backend/cuda/cuda_device.cu": "cudaMalloc(&p, 1);\n",
        "backend/cuda/add.cu": "must(cudaMemsetAsync(p, 0, 4, s), \"add\");  // cudaMemset() would wait\n",
        "comm/comm_test.cc": '#include "backend/ref/ref.h"\n',
        "cli/main.cc": '#include <CLI/CLI.hpp>\n#include "backend/cuda/cuda.h"\n',
    }
    # What is changed in the good tree, and a piece of the message that must come.
    bad = [
        ("an include that goes up", {"base/error.h": '#include "tensor/dtype.h"\n'}, "not let base/ include tensor/"),
        ("an include with blanks", {"base/error.h": ' #  include  "tensor/dtype.h"\n'}, "not let base/ include"),
        ("a folder that is no layer", {"base/error.h": '#include "utils/x.h"\n'}, "not begin with a folder"),
        ("an include without a folder", {"base/text.cc": '#include "error.h"\n'}, "not begin with a folder"),
        ("a file that is not there", {"base/text.cc": '#include "base/gone.h"\n'}, "does not exist"),
        ("a private backend", {"comm/comm.cc": '#include "backend/ref/ref.h"\n'}, "private to backend/"),
        ("CUDA on the wrong side", {"tensor/x.cc": "#include <cuda_fp8.h>\n"}, "<cuda_fp8.h> outside"),
        ("NCCL on the wrong side", {"comm/mpi.cc": "#include <nccl.h>\n"}, "<nccl.h> outside"),
        ("a condition on CUDA", {"backend/b.cc": "#ifdef CACHALOT_CUDA\n#endif\n"}, "condition on CUDA"),
        ("an #if on nvcc", {"tensor/x.h": "#if defined(__CUDACC__)\n#endif\n"}, "condition on CUDA"),
        ("CLI11 outside cli/", {"backend/b.cc": "#include <CLI/CLI.hpp>\n"}, "<CLI/CLI.hpp> outside cli/"),
        ("an operation that waits", {"backend/cuda/x.cu": "must(cudaStreamSynchronize(s), op);\n"}, "waits for"),
        ("an operation that takes memory", {"backend/cuda/x.cuh": "  cudaMallocAsync(&p, n, s);\n"}, "takes memory"),
        ("a copy that waits", {"backend/cuda/hopper/x.cu": "cudaMemcpy(a, b, n, k);\n"}, "waits for the card"),
        ("a folder without a line", {"extra/x.h": "\n"}, "not in a folder of LAYERS"),
        ("a file in no folder", {"x.h": "\n"}, "not in a folder of LAYERS"),
        ("a cycle in LAYERS", {"LAYERS": good["LAYERS"].replace("base:", "base: cli", 1)}, "not above it"),
        ("a folder listed twice", {"LAYERS": good["LAYERS"] + "base:\n"}, "listed twice"),
        ("a broken line", {"LAYERS": good["LAYERS"] + "Base\n"}, "not of the form"),
    ]

    def problems_of(files):
        with tempfile.TemporaryDirectory() as root:
            for name, text in files.items():
                path = Path(root) / "cachalot" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            return check(Path(root))

    failures = [f"the good tree: {p}" for p in problems_of(good)]
    for what, change, expected in bad:
        found = problems_of({**good, **change})
        if len(found) != 1 or expected not in found[0]:
            failures.append(f"{what}: expected one problem with \"{expected}\", found {found}")
    for failure in failures:
        print(failure, file=sys.stderr)
    print(f"self-test: {len(bad) + 1 - len(failures)} of {len(bad) + 1} trees judged rightly")
    return 1 if failures else 0


def main():
    arguments = sys.argv[1:]
    if arguments == ["--self-test"]:
        return self_test()
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parent.parent
    problems = check(root)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print(f"{len(problems)} includes against cachalot/LAYERS", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
