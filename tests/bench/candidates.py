"""Model files under a runtime, ours or llama.cpp, that answer the same questions.

A case is a kind, tokens and a depth: how many tokens a second are read as a prompt of so many, generated
after so many of context, or run in batches of so many, as guessed tokens are verified.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

HERE = Path(__file__).parent
SCRIPTS = Path(sys.executable).parent


class Case(NamedTuple):
    kind: str
    """prompt, generation or batch"""
    tokens: int
    depth: int = 0


@dataclass
class Candidate(ABC):
    """One model file under one runtime, and the tokens a second of every round, case by case."""

    label: str
    path: Path
    threads: int
    rates: dict[Case, list[float]] = field(default_factory=dict)

    @abstractmethod
    def measure(self, cases: Sequence[Case], rounds: int = 1) -> None:
        """Adds `rounds` figures to `rates` for each case."""

    def add(self, case: Case, rates: Sequence[float]) -> None:
        self.rates.setdefault(case, []).extend(rates)

    def rate(self, case: Case) -> float:
        return statistics.median(self.rates[case])


@dataclass
class Ours(Candidate):
    kv: str = "f16"
    command: list[str] = field(default_factory=list)
    """The last one that measured."""
    read: list[float] = field(default_factory=list)
    """GB/s that the machine read with as many threads, beside each figure of generation."""
    found: dict[str, Any] = field(default_factory=dict)
    """The last report."""

    def measure(self, cases: Sequence[Case], rounds: int = 1) -> None:
        def values(numbers: Sequence[int]) -> str:
            return ",".join(map(str, dict.fromkeys(numbers)))

        options = {
            "-p": values([c.tokens for c in cases if c.kind == "prompt"]) or "1",
            "-n": values([c.tokens for c in cases if c.kind == "generation"]) or "1",
            "--batch": values([c.tokens for c in cases if c.kind == "batch"]),
            "-d": values([c.depth for c in cases if c.kind != "prompt"]) or "0",
            "-r": str(rounds),
            "--threads": str(self.threads),
            "--kv": self.kv,
        }
        words = [word for name, value in options.items() if value for word in (name, value)]
        self.command = ["sq-bench", self.path.name, *words]
        command = [str(SCRIPTS / "sq-bench"), str(self.path), *words, "--json"]
        self.found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        self.read += self.found["read_rounds"]
        for entry in self.found["cases"]:
            case = Case(entry["kind"], entry["tokens"], entry["depth"])
            if case in cases:
                self.add(case, entry["rounds"])


@dataclass
class Peer(Candidate):
    """Its process stays: llama.cpp loads the model once, as a chat would."""

    python: str = ""
    n_ctx: int = 1024
    process: subprocess.Popen[str] | None = None

    def measure(self, cases: Sequence[Case], rounds: int = 1) -> None:
        for case in cases:
            self.add(case, [float(self.ask(case)) for _ in range(rounds)])

    def ask(self, case: Case) -> str:
        if self.process is None:
            command = [self.python, str(HERE / "peer.py"), "bench", str(self.path)]
            command += [str(self.n_ctx), str(self.threads)]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin
        self.process.stdin.write(f"{case.kind} {case.tokens} {case.depth}\n")
        self.process.stdin.flush()
        output: IO[str] | None = self.process.stdout
        line = output.readline() if output else ""
        if not line:
            sys.exit(f"{self.path.name}: llama.cpp stopped")
        return line

    def close(self) -> None:
        if self.process:
            self.process.communicate()
            self.process = None
