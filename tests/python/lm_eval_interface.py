"""What sqllm.harness uses of lm-evaluation-harness, in its place: the real one is a large install, against
which separate/test_lm_eval.py runs (`make test-lm-eval`)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

registered: dict[str, Any] = {}


def register_model(name: str) -> Callable[[Any], Any]:
    def register(model: Any) -> Any:
        registered[name] = model
        return model

    return register


class TemplateLM:
    """Its loglikelihood makes tokens of texts, and asks _loglikelihood_tokens."""

    def __init__(self) -> None:
        self.cache_hook = SimpleNamespace(add_partial=lambda *_: None)


def normalize_gen_kwargs(arguments: dict[str, Any], default_max_gen_toks: int) -> dict[str, Any]:
    return {"max_gen_toks": default_max_gen_toks, "until": [], "do_sample": False, **arguments}


def get_rolling_token_windows(
    ids: list[int], prefix_token: int, max_seq_len: int, context_len: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Pairs of inputs and the tokens behind each of them."""
    assert context_len == 1
    before = [prefix_token, *ids]
    for start in range(0, len(ids), max_seq_len):
        end = min(start + max_seq_len, len(ids))
        yield before[start:end], ids[start:end]


def make_disjoint_window(pair: tuple[list[int], list[int]]) -> tuple[list[int], list[int]]:
    return pair[0][:1], pair[1]


def modules() -> dict[str, ModuleType]:
    """What to put into sys.modules so that ``import lm_eval`` finds this."""
    names = ["lm_eval", "lm_eval.api", "lm_eval.models"]
    found = {name: ModuleType(name) for name in names}
    this = sys.modules[__name__]
    return found | {
        f"lm_eval.{name}": this for name in ("api.model", "api.registry", "models.utils", "utils")
    }
