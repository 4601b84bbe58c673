"""Start-up and memory of sq-run: process start to the first generated token of a short prompt, and the most
memory that a process had at once, mapped file included."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from candidates import SCRIPTS, Case, Ours

PROMPT = "The capital of France is Paris, and of Italy"
N_PROMPT = 10  # tokens, for SmolLM2's tokenizer, which both models have
N_CTX = 1024
SLACK_SECONDS, SLACK_BYTES, FACTOR = 0.05, 64 << 20, 1.3


@dataclass
class Start:
    seconds: float
    """Median."""
    bound_seconds: float
    """What was promised: 1.3 × (prompt + one token) + 50 ms."""
    peak_bytes: int
    bound_bytes: int
    """What was promised: file + KV cache + 64 MB."""


def run(command: Sequence[str]) -> tuple[float, int]:
    """Seconds to the first byte of output; peak bytes of the whole run."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout
    assert os.read(process.stdout.fileno(), 1), f"{' '.join(command)} said nothing"
    seconds = time.perf_counter() - start
    process.stdout.read()
    _, _, usage = os.wait4(process.pid, 0)
    return seconds, usage.ru_maxrss * 1024


def measure(path: Path, kv_bytes: int, threads: int, rounds: int) -> Start:
    command = [str(SCRIPTS / "sq-run"), str(path), "--raw", "--temp", "0"]
    command += ["--threads", str(threads), "--ctx", str(N_CTX)]
    seconds = [run([*command, "-p", PROMPT, "-n", "1"])[0] for _ in range(rounds + 1)][1:]
    _, peak = run([*command, "-p", PROMPT * 60, "-n", "16"])
    ours = Ours("", path, threads)
    prompt, token = Case("prompt", N_PROMPT), Case("generation", 16)
    ours.measure([prompt, token], rounds)
    computing = N_PROMPT / ours.rate(prompt) + 1 / ours.rate(token)
    return Start(
        seconds=statistics.median(seconds),
        bound_seconds=FACTOR * computing + SLACK_SECONDS,
        peak_bytes=peak,
        bound_bytes=path.stat().st_size + kv_bytes + SLACK_BYTES,
    )
