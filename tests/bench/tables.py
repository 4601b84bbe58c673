"""What was measured, as the tables of docs/BENCHMARKS.md, each with the command that repeats its row."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from candidates import Candidate, Case, Ours, Peer
from lookup import N_TOKENS, Lookup
from page import table
from startup import N_CTX, Start


def machine() -> str:
    text = Path("/proc/cpuinfo").read_text()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    sets = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16") if f" {name} " in text]
    return f"{names[0] if names else platform.processor()}, {', '.join(sets)}"


def command_of(found: Sequence[Candidate], case: str) -> str:
    command = next(" ".join(c.command) for c in found if isinstance(c, Ours))
    peers = "; llama.cpp through `tests/bench/peer.py`" if any(isinstance(c, Peer) for c in found) else ""
    return f"`{command}` {case}{peers}.\n"


def spread(candidate: Candidate, case: Case, digits: int = 1) -> str:
    rates = candidate.rates[case]
    return f"{candidate.rate(case):.{digits}f} ({min(rates):.{digits}f} … {max(rates):.{digits}f})"


def speed(title: str, found: Sequence[Candidate], cases: Sequence[Case]) -> str:
    prompt, generation = cases
    rows = []
    for c in found:
        bandwidth = share = "–"
        if isinstance(c, Ours):
            gb = c.rate(generation) * c.found["weight_bytes_per_token"] * 1e-9
            read = statistics.median(c.read)
            bandwidth, share = f"{gb:.1f}", f"{100 * gb / read:.0f} % of {read:.1f}"
        size = f"{c.path.stat().st_size / 1e6:.0f}"
        rows.append([c.label, size, spread(c, prompt, 0), spread(c, generation), bandwidth, share])
    head = ["", "file, MB", f"prompt of {prompt.tokens}, tok/s", f"generation of {generation.tokens}, tok/s"]
    head += ["GB/s of weights", "share of the read bandwidth"]
    what = command_of(found, "in each round")
    return f"## {title}\n\n{what}\n{table(head, rows)}\n" + "\n".join([*ratios(found, cases), ""])


def ratios(found: Sequence[Candidate], cases: Sequence[Case]) -> Iterable[str]:
    """Ours over the best peer of as many bits, prompts over the best one of 4 bits, round by round."""
    for ours in (c for c in found if isinstance(c, Ours)):
        for case in cases:
            bits = "3" if "3 bits" in ours.label and case.kind == "generation" else "4"
            rivals = [c for c in found if isinstance(c, Peer) and f"Q{bits}" in c.label]
            if rivals:
                best = max(rivals, key=lambda c: c.rate(case))
                pairs = [a / b for a, b in zip(ours.rates[case], best.rates[case], strict=True)]
                times = f"{statistics.median(pairs):.2f} × {best.label} ({min(pairs):.2f} … {max(pairs):.2f})"
                yield f"- {ours.label.strip('*')}, {case.kind}: {times}"


def layer_weights(shape: Mapping[str, int]) -> int:
    """Weights of a layer's matrices."""
    n_embd, n_ff = shape["embedding_length"], shape["feed_forward_length"]
    n_kv = n_embd // shape["attention.head_count"] * shape["attention.head_count_kv"]
    return 2 * n_embd * n_embd + 2 * n_kv * n_embd + 3 * n_ff * n_embd


def arithmetic(found: Sequence[Candidate], prompt: Case, n_weights: int, plain: Sequence[float]) -> str:
    rows = [["plain bf16 products, PyTorch with oneDNN", f"{statistics.median(plain):.0f}", "100 %"]]
    for c in found:
        rate = 2e-9 * n_weights * c.rate(prompt)
        rows.append([c.label, f"{rate:.0f}", f"{100 * rate / statistics.median(plain):.0f} %"])
    head = ["", "GFLOP/s", "of the plain product"]
    return (
        f"## Prompts of {prompt.tokens} on the 1.1B shape as arithmetic\n\n"
        "Two operations for each weight of the layers' matrices and each token; all else is not counted.\n"
        f"Beside it `tests/bench/matmul.py` on the same shapes.\n\n{table(head, rows)}"
    )


def depth(found: Sequence[Candidate], cases: Sequence[Case], reports: Mapping[str, Any]) -> str:
    """Ours also beside what the bytes of the KV cache explain."""
    rows = []
    for c in found:
        cells = [c.label, *(spread(c, case) for case in cases)]
        explained = "–"
        if isinstance(c, Ours):
            read = {e["depth"]: e["bytes_read"] for e in reports[c.kv] if e["kind"] == "generation"}
            expected = read[cases[-1].depth] / read[cases[0].depth]
            explained = f"{c.rate(cases[0]) / c.rate(cases[-1]):.2f} × the time, {expected:.2f} × the bytes"
        rows.append([*cells, explained])
    head = ["tok/s after a context of", *(str(case.depth) for case in cases), "last against first"]
    return (
        f"## Generation after a long context, 1.1B shape\n\n{command_of(found, 'once')}\n{table(head, rows)}"
    )


def batch(found: Sequence[Candidate], cases: Sequence[Case]) -> str:
    rows = []
    for c in found:
        seconds = {case: case.tokens / c.rate(case) for case in cases}
        single = seconds[cases[0]]
        cells = [f"{1e3 * seconds[case]:.1f} ({seconds[case] / single:.2f} ×)" for case in cases]
        rows.append([c.label, *cells])
    head = ["ms for tokens at once (× one token)", *(str(case.tokens) for case in cases)]
    return f"## Batches, 1.1B shape\n\n{command_of(found, 'in each round')}\n{table(head, rows)}"


def threads(found: Sequence[Candidate], cases: Sequence[Case]) -> str:
    rows = [[c.label, str(c.threads), *(spread(c, case) for case in cases)] for c in found]
    head = ["", "threads", *(f"{case.kind} of {case.tokens}, tok/s" for case in cases)]
    return f"## Threads, 1.1B shape\n\n{command_of(found, 'in each round')}\n{table(head, rows)}"


def start(rows: Sequence[tuple[str, Start]]) -> str:
    cells = [
        [
            label,
            f"{1e3 * s.seconds:.0f}",
            f"{1e3 * s.bound_seconds:.0f}",
            f"{s.peak_bytes / 1e6:.0f}",
            f"{s.bound_bytes / 1e6:.0f}",
        ]
        for label, s in rows
    ]
    head = ["", "process start to first token, ms", "promised", "most memory, MB", "promised"]
    return (
        "## Start and memory\n\n"
        "`tests/bench/startup.py`: `sq-run` with a prompt of 10 tokens, file in the page cache; promised\n"
        "are 1.3 × (prompt + one token) + 50 ms. Memory after a prompt of 600 tokens and 16 more; promised\n"
        f"are the file, the KV cache of {N_CTX} tokens and 64 MB.\n\n{table(head, cells)}"
    )


def looked_up(found: Sequence[Lookup]) -> str:
    rows = [[f.what, f"{f.plain:.1f}", f"{f.ahead:.1f}", f"{f.gain:.2f} ×"] for f in found]
    head = ["answer", "tok/s", "with lookup", "ratio within a round"]
    return (
        "## Prompt lookup, SmolLM2-135M at 4 bits\n\n"
        f"`tests/bench/lookup.py`: {N_TOKENS} tokens, the same with and without.\n\n{table(head, rows)}"
    )


def chart(title: str, found: Sequence[Candidate], cases: Sequence[Case]) -> dict[str, Any]:
    """What chart.py draws."""
    bars = [[c.label.strip("*"), isinstance(c, Ours), *(c.rate(case) for case in cases)] for c in found]
    return {"title": title, "cases": [f"{case.kind} of {case.tokens}" for case in cases], "bars": bars}
