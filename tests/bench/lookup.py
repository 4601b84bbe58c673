"""Tokens a second with and without prompt lookup, of an answer that copies its prompt and of a free one."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from candidates import HERE
from sqllm import Model

N_TOKENS = 200
LICENCE = (HERE.parent.parent / "LICENSE").read_text()
QUESTIONS = {
    "copying": f"Repeat this text word for word:\n\n{LICENCE}",
    "free": "Write a story about a lighthouse keeper who finds a message in a bottle.",
}


@dataclass
class Lookup:
    what: str
    plain: float
    """Tokens a second, median of the rounds; `ahead`: with lookup."""
    ahead: float
    gain: float
    """Median of the ratios within a round."""


def rate(model: Model, question: str, lookup: bool) -> tuple[float, str]:
    messages = [{"role": "user", "content": question}]
    start = time.perf_counter()
    answer = model.chat(messages, max_tokens=N_TOKENS, temperature=0, lookup=lookup)
    return len(model.tokenize(answer)) / (time.perf_counter() - start), answer


def measure(path: Path, threads: int, rounds: int) -> list[Lookup]:
    found = []
    with Model(path, threads=threads) as model:
        for what, question in QUESTIONS.items():
            rate(model, question, False)  # later ones keep the prompt
            pairs = []
            for _ in range(rounds):
                (plain, text), (ahead, same) = (rate(model, question, lookup) for lookup in (False, True))
                assert text == same, "lookup changes the answer"
                pairs.append((plain, ahead))
            plains, aheads = zip(*pairs, strict=True)
            gain = statistics.median(ahead / plain for plain, ahead in pairs)
            found.append(Lookup(what, statistics.median(plains), statistics.median(aheads), gain))
    return found
