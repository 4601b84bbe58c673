"""SqueezeLLM models in lm-evaluation-harness. Importing this module registers the model class `sqllm` there.

Texts become tokens, and tokens requests, as the harness's Hugging Face backend has it, so that both give the
same log-likelihoods to the same weights: special tokens that are spelled in a text count as such, the
beginning-of-sequence token goes first where the model was trained to see it and the text does not spell it,
and what a text without context is conditioned on is that token, else the one that ends a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from . import generate
from ._ffi import lib
from .generate import Sampling
from .model import Model

MAX_GENERATED = 256  # tokens, where a task does not say

Request = tuple[Any, list[int], list[int]]  # what it stands for, context, continuation


@register_model("sqllm")
class SqueezeLLM(TemplateLM):  # type: ignore[misc]  # lm_eval is not followed
    """``--model sqllm --model_args path=model.sq.gguf``; the other arguments are those of `sqllm.Model`.

    Requests run one after the other on the CPU: the harness's batch sizes and device change nothing.
    """

    def __init__(
        self,
        path: str,
        threads: int | None = None,
        ctx: int | None = None,
        kv: Literal["f16", "q8", "f32"] | None = None,
        exact: bool = False,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
    ) -> None:
        super().__init__()
        self.model = Model(path, threads=threads, ctx=ctx, kv=kv, exact=exact)
        handle = self.model._session.model
        self._eos, bos = int(lib.sq_token_eos(handle)), int(lib.sq_token_bos(handle))
        self._prefix = self._eos if bos < 0 else bos
        self._prefix_text = self.model.detokenize([self._prefix], special=True) if self._prefix >= 0 else ""

    @property
    def eot_token_id(self) -> int:
        return self._eos

    @property
    def prefix_token_id(self) -> int:
        return self._prefix

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if add_special_tokens is None:
            add_special_tokens = not (self._prefix_text and string.startswith(self._prefix_text))
        return self.model.tokenize(string, add_bos=add_special_tokens, special=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Of each continuation: its log-probability, and whether every token of it is the most probable.

        In the order of their tokens, since what a request shares with the one before is computed already.
        What is too long loses its beginning.
        """
        longest = self.model.n_ctx + 1
        order = sorted(range(len(requests)), key=lambda i: requests[i][1] + requests[i][2])
        found: dict[int, tuple[float, bool]] = {}
        for i in tqdm(order, desc="Running loglikelihood requests", disable=disable_tqdm):
            what, context, continuation = requests[i]
            ids = (context + continuation)[-longest:]
            scores = self.model.score(ids, max(1, len(ids) - len(continuation)))
            found[i] = (float(scores.log_probabilities.sum()), bool(scores.greedy.all()))
            if what is not None:
                self.cache_hook.add_partial("loglikelihood", what, found[i])
        return [found[i] for i in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        sums = []
        for request in tqdm(requests, desc="Running rolling requests", disable=disable_tqdm):
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.model.n_ctx, context_len=1
            )
            pairs = [(None, *make_disjoint_window(window)) for window in windows]
            sums.append(sum(score for score, _ in self._loglikelihood_tokens(pairs, disable_tqdm=True)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, sums[-1])
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        texts = []
        for i, request in enumerate(tqdm(requests, desc="Running generations", disable=disable_tqdm)):
            context, arguments = request.args
            texts.append(self._generate(context, arguments, seed=i))
            self.cache_hook.add_partial("generate_until", request.args, texts[-1])
        return texts

    def _generate(self, context: str, arguments: dict[str, Any], seed: int) -> str:
        given = dict(normalize_gen_kwargs(arguments, MAX_GENERATED))
        n_tokens, stop = given.pop("max_gen_toks"), given.pop("until")
        if not 0 < n_tokens < self.model.n_ctx:
            raise ValueError(
                f"max_gen_toks {n_tokens}: expected less than the context of {self.model.n_ctx} tokens"
            )
        if not given.pop("do_sample"):
            given = {"temperature": 0.0}
        sampling = Sampling(**{"top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": seed, **given})  # type: ignore[typeddict-item]
        ids = (self.tok_encode(context) or [self.prefix_token_id])[n_tokens - self.model.n_ctx :]
        pieces = generate.stream_text(
            self.model._session, ids, n_tokens, [s for s in stop if s], sampling, lookup=False, new_text=True
        )
        return "".join(pieces)
