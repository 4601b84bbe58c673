"""Measure sq-bench and llama.cpp side by side and write the tables of docs/BENCHMARKS.md.

usage: bench.py --smollm2 SMOLLM2.gguf --work FOLDER --peer-python PYTHON --out docs/BENCHMARKS.md

Two models: SmolLM2-135M, and random weights in TinyLlama's shape (1.1B). Ours are converted at 4 and 3
bits with 0.45 % outliers by round-to-nearest, which is quick and costs the runtime exactly what any other
method does. Peers are quantized by llama.cpp from the same file. Every round measures every candidate
once, so that a drift of the machine meets all of them; the tables hold medians.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).parent
PEER_TYPES = ["Q4_0", "IQ4_NL", "Q4_K_S", "Q3_K_S"]


@dataclass
class Candidate(ABC):
    """One model file under one runtime, and what was measured of it."""

    label: str
    path: Path
    samples: list[dict[str, float]] = field(default_factory=list)

    @abstractmethod
    def measure(self, args: argparse.Namespace) -> None:
        """Appends one sample: tokens a second as `prompt` and `generation`."""

    def median(self, key: str) -> float | None:
        values = [s[key] for s in self.samples if key in s]
        return statistics.median(values) if values else None


class Ours(Candidate):
    def measure(self, args: argparse.Namespace) -> None:
        command = [str(Path(sys.executable).parent / "sq-bench"), str(self.path), "-p", str(args.prompt)]
        command += ["-n", str(args.generate), "-r", "3", "--threads", str(args.threads), "--json"]
        found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        self.samples.append(
            {
                "prompt": found["prompt_tokens_per_second"],
                "generation": found["generation_tokens_per_second"],
                "bytes": found["weight_bytes_per_token"],
                "read": found["read_gb_per_second"],
            }
        )


class Peer(Candidate):
    """Its process stays: llama.cpp loads the model once, as a chat would."""

    process: subprocess.Popen[str] | None = None

    def measure(self, args: argparse.Namespace) -> None:
        if self.process is None:
            command = [args.peer_python, str(HERE / "peer.py"), "bench", str(self.path)]
            command += [str(args.prompt), str(args.generate), str(args.threads)]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self._line()
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.samples.append(json.loads(self._line()))

    def _line(self) -> str:
        assert self.process
        output: IO[str] | None = self.process.stdout
        line = output.readline() if output else ""
        if not line:
            sys.exit(f"{self.path.name}: llama.cpp stopped")
        return line

    def close(self) -> None:
        if self.process:
            self.process.communicate()


def make(out: Path, command: list[str]) -> Path:
    """Runs `command` + [partial file] unless `out` is there."""
    if not out.exists():
        print(f"making {out.name}", flush=True)
        subprocess.run(command, check=True)
    return out


def candidates(name: str, source: Path, args: argparse.Namespace) -> list[Candidate]:
    convert = [str(Path(sys.executable).parent / "sq-convert"), str(source), "--method", "rtn"]
    found: list[Candidate] = []
    for bits in (4, 3):
        out = args.work / f"{name}-{bits}.sq.gguf"
        make(out, [*convert, "--bits", str(bits), "-o", str(out)])
        found.append(Ours(f"**SqueezeLLM {bits} bits + 0.45 %**", out))
    for kind in PEER_TYPES:
        out = args.work / f"{name}-{kind}.gguf"
        make(out, [args.peer_python, str(HERE / "peer.py"), "quantize", str(source), str(out), kind])
        found.append(Peer(f"llama.cpp {kind}", out))
    return found


def table(title: str, found: list[Candidate], args: argparse.Namespace) -> str:
    lines = [
        f"## {title}",
        "",
        f"| | file, MB | prompt of {args.prompt}, tok/s | generation of {args.generate}, tok/s "
        "| min … max | GB/s of weights | share of the read bandwidth |",
        "|---|---|---|---|---|---|---|",
    ]
    for c in found:
        generation = c.median("generation") or 0.0
        rates = [s["generation"] for s in c.samples]
        n_bytes, read = c.median("bytes"), c.median("read")
        bandwidth = f"{generation * n_bytes * 1e-9:.1f}" if n_bytes else "–"
        share = f"{100 * generation * n_bytes * 1e-9 / read:.0f} % of {read:.1f}" if n_bytes and read else "–"
        lines.append(
            f"| {c.label} | {c.path.stat().st_size / 1e6:.0f} | {c.median('prompt'):.0f} | {generation:.1f} "
            f"| {min(rates):.1f} … {max(rates):.1f} | {bandwidth} | {share} |"
        )
    lines += ["", *ratios(found), ""]
    return "\n".join(lines)


def ratios(found: list[Candidate]) -> list[str]:
    """Ours over the best peer of about the same bits, pair by pair within a round."""
    lines = []
    for bits in (4, 3):
        ours = next(c for c in found if f"{bits} bits" in c.label)
        rivals = [c for c in found if isinstance(c, Peer) and f"Q{bits}" in c.label]
        for key in ("generation", "prompt"):
            best = max(rivals, key=lambda c: c.median(key) or 0.0)
            pairs = [a[key] / b[key] for a, b in zip(ours.samples, best.samples, strict=True)]
            lines.append(
                f"- {bits} bits, {key}: {statistics.median(pairs):.2f} × {best.label} "
                f"({min(pairs):.2f} … {max(pairs):.2f})"
            )
    return lines


def machine() -> str:
    cpu = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")),
        platform.processor(),
    )  # fmt: skip
    flags = Path("/proc/cpuinfo").read_text()
    sets = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16") if f" {name} " in flags]
    return f"{cpu}, {', '.join(sets)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smollm2", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    args.work.mkdir(parents=True, exist_ok=True)
    random = args.work / "random-1.1B-f16.gguf"
    make(random, [sys.executable, str(HERE / "random_model.py"), str(args.smollm2), str(random)])
    tables = []
    for title, name, source in (
        ("SmolLM2-135M", "smollm2", args.smollm2),
        ("Random weights, 1.1B, TinyLlama's shape", "random-1.1B", random),
    ):
        found = candidates(name, source, args)
        for i in range(args.rounds):
            print(f"{title}: round {i + 1} of {args.rounds}", flush=True)
            for candidate in found:
                candidate.measure(args)
        for candidate in found:
            if isinstance(candidate, Peer):
                candidate.close()
        tables.append(table(title, found, args))
    args.out.write_text(
        (HERE / "BENCHMARKS.head.md")
        .read_text()
        .format(machine=machine(), threads=args.threads, rounds=args.rounds)
        + "\n".join(tables)
    )
    print(args.out.read_text())


if __name__ == "__main__":
    main()
