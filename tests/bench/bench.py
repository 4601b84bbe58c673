"""Measure sq-bench, and with --peer-python llama.cpp beside it, and write the tables of docs/BENCHMARKS.md.

usage: bench.py --smollm2 SMOLLM2.gguf --work FOLDER --out FILE.md [--peer-python PYTHON]

Two models: SmolLM2-135M, and random weights in TinyLlama's shape (1.1B). Ours are converted at 4 and 3
bits with 0.45 % outliers by round-to-nearest, which is quick and costs the runtime exactly what any other
method does but `squeezellm`, whose tables are f16. Peers are quantized by llama.cpp from the same file.
Every round measures every candidate once, so that a drift of the machine meets all of them; the tables hold
medians.

With peers a chart is drawn beside FILE.md, and what stands in FILE.md from "## Targets" on stays as it is.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lookup
import startup
import tables
from candidates import HERE, SCRIPTS, Candidate, Case, Ours, Peer
from page import gpu_section, without_gpu
from random_model import SHAPE

PEER_TYPES = ["Q4_0", "IQ4_NL", "Q4_K_S", "Q3_K_S", "IQ3_S"]
HAND_WRITTEN = re.compile(r"^## Targets", re.MULTILINE)


def make(out: Path, command: list[str]) -> Path:
    """Runs `command`, which writes `out`, unless it is there."""
    if not out.exists():
        print(f"making {out.name}", flush=True)
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return out


def ours(name: str, source: Path, bits: int, args: argparse.Namespace, **more: Any) -> Ours:
    convert = [str(SCRIPTS / "sq-convert"), str(source), "--method", "rtn", "--bits", str(bits)]
    out = args.work / f"{name}-{bits}.sq.gguf"
    label = f"**SqueezeLLM {bits} bits + 0.45 %**"
    return Ours(label, make(out, [*convert, "-o", str(out)]), args.threads, **more)


def peer(name: str, source: Path, kind: str, args: argparse.Namespace, n_ctx: int) -> Peer:
    out = args.work / f"{name}-{kind}.gguf"
    command = [args.peer_python, str(HERE / "peer.py"), "quantize", str(source), str(out), kind]
    return Peer(f"llama.cpp {kind}", make(out, command), args.threads, python=args.peer_python, n_ctx=n_ctx)


def candidates(name: str, source: Path, args: argparse.Namespace) -> list[Candidate]:
    found: list[Candidate] = [ours(name, source, bits, args) for bits in (4, 3)]
    if args.peer_python:
        found += [peer(name, source, kind, args, args.prompt + args.generate) for kind in PEER_TYPES]
    return found


def measure_all(found: Sequence[Candidate], cases: Sequence[Case], rounds: int, what: str) -> None:
    for i in range(rounds):
        print(f"{what}: round {i + 1} of {rounds}", flush=True)
        for candidate in found:
            candidate.measure(cases)


def close(found: Sequence[Candidate]) -> None:
    for candidate in found:
        if isinstance(candidate, Peer):
            candidate.close()


def matmul_rates(args: argparse.Namespace) -> list[float]:
    command = [sys.executable, str(HERE / "matmul.py"), str(args.prompt), str(args.threads)]
    return [
        json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["bf16"]
        for _ in range(args.rounds)
    ]


def sweeps(source: Path, args: argparse.Namespace) -> list[str]:
    """Context depth, batches and threads on the 1.1B shape."""
    name, depths = "random-1.1B", [int(d) for d in args.depths.split(",")]
    by_depth = [Case("generation", args.generate // 2, d) for d in depths]
    batches = [Case("batch", n) for n in (1, 2, 4, 8, 9)]
    basic = [Case("prompt", args.prompt), Case("generation", args.generate // 2)]
    n_ctx = depths[-1] + args.prompt
    deep: list[Candidate] = [ours(name, source, 4, args, kv=kv) for kv in ("f16", "q8")]
    for candidate in deep:
        candidate.label += f", {candidate.kv} cache" if isinstance(candidate, Ours) else ""
    if args.peer_python:
        deep.append(peer(name, source, PEER_TYPES[0], args, n_ctx))
    wide: list[Candidate] = [ours(name, source, bits, args) for bits in (4, 3)]
    wide += deep[2:]
    print("context depth", flush=True)
    for candidate in deep:
        candidate.measure(by_depth, args.sweep_rounds)
    print("batches", flush=True)
    measure_all(wide, batches, args.sweep_rounds, "batches")
    close(deep)
    threads: list[Candidate] = []
    for n in sorted({1, args.threads}):
        args_n = argparse.Namespace(**{**vars(args), "threads": n})
        threads += [ours(name, source, 4, args_n)]
        threads += [peer(name, source, PEER_TYPES[0], args_n, n_ctx)] if args.peer_python else []
    measure_all(threads, basic, args.sweep_rounds, "threads")
    close(threads)
    kv_bytes = {c.kv: c.found["cases"] for c in deep if isinstance(c, Ours)}
    return [
        tables.depth(deep, by_depth, kv_bytes),
        tables.batch(wide, batches),
        tables.threads(threads, basic),
    ]


def starts(files: Sequence[tuple[str, Path]], args: argparse.Namespace) -> str:
    rows = []
    for label, path in files:
        info = [str(SCRIPTS / "sq-info"), str(path), "--ctx", str(startup.N_CTX), "--json"]
        kv_bytes = json.loads(subprocess.run(info, check=True, capture_output=True).stdout)["kv_bytes"]
        rows.append((label, startup.measure(path, kv_bytes, args.threads, args.rounds)))
    return tables.start(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smollm2", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--peer-python")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--depths", default="0,2048,6000")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sweep-rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    args.work.mkdir(parents=True, exist_ok=True)
    random = args.work / "random-1.1B-f16.gguf"
    make(random, [sys.executable, str(HERE / "random_model.py"), str(args.smollm2), str(random)])
    basic = [Case("prompt", args.prompt), Case("generation", args.generate)]
    parts, charts, files = [], [], []
    for title, name, source in (
        ("SmolLM2-135M", "smollm2", args.smollm2),
        ("Random weights, 1.1B, TinyLlama's shape", "random-1.1B", random),
    ):
        found = candidates(name, source, args)
        measure_all(found, basic, args.rounds, title)
        close(found)
        parts.append(tables.speed(title, found, basic))
        charts.append(tables.chart(title, found, basic))
        files += [(f"{title}, {bits} bits", c.path) for bits, c in zip((4, 3), found, strict=False)]
    n_layer_weights = SHAPE["block_count"] * tables.layer_weights(SHAPE)
    parts.append(tables.arithmetic(found, basic[0], n_layer_weights, matmul_rates(args)))
    parts += sweeps(random, args)
    parts.append(starts(files, args))
    parts.append(tables.looked_up(lookup.measure(files[0][1], args.threads, args.rounds)))

    before = args.out.read_text() if args.out.exists() else ""
    head = (HERE / "BENCHMARKS.head.md").read_text()
    text = head.format(machine=tables.machine(), threads=args.threads, rounds=args.rounds) + "\n".join(parts)
    if args.peer_python:
        image = args.out.with_suffix(".png")
        text = text.replace(
            "\n## ", f"\n![generation and prompts in tokens a second]({image.name})\n\n## ", 1
        )
        command = [args.peer_python, str(HERE / "chart.py"), str(image)]
        subprocess.run(command, check=True, input=json.dumps(charts), text=True)
        kept = HAND_WRITTEN.search(without_gpu(before))
        text += "\n" + without_gpu(before)[kept.start() :] if kept else ""
    args.out.write_text(text + gpu_section(before))
    print(text)


if __name__ == "__main__":
    main()
