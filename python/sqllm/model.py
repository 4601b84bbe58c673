"""The model that users hold."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from . import chat, generate, tokenizer
from ._ffi import ffi, text
from .error import Error, Status
from .generate import Sampling, Token
from .session import Session

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack  # in typing from Python 3.11 on

LOGITS_BYTES = 1 << 26  # log_probabilities computes so much at a time


@dataclass(frozen=True)
class ModelInfo:
    """What a model is."""

    architecture: str
    name: str
    cpu: str
    """The instruction set in use: "scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "neon", "dotprod"."""
    prompt: str
    """The arithmetic of prompts: "int16", or "f32" where exact."""
    device: str
    """The GPU that has layers, "NVIDIA H200"; "" where none has."""
    device_absent: str
    """Why none has, though `device` was "auto"; else ""."""
    gpu_layers: int
    """How many it has, counted from the last."""
    n_layers: int
    n_embd: int
    n_ff: int
    n_experts: int
    """Of a layer that mixes feed-forward networks; 0: no layer does."""
    n_experts_used: int
    """By one token."""
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_vocab: int
    n_ctx_train: int
    """The context the model was trained for, in tokens."""
    n_params: int
    """Weights of all matrices and vectors."""
    file_bytes: int
    token_bytes: int
    """Bytes of weights read to generate one token; the KV cache is not counted."""
    bits_per_weight: float
    """Of the quantized matrices: codes, tables, sparse values and row pointers."""
    sparse_share: float
    """Share of the quantized matrices' weights that are kept apart, 0 to 1."""


class Scores(NamedTuple):
    """What a model says of tokens that came."""

    log_probabilities: NDArray[np.float64]
    """Natural logarithms."""
    greedy: NDArray[np.bool_]
    """Whether no token was more probable."""


class Model:
    """A model file, open, with one timeline of tokens.

        with Model("model.sq.gguf") as model:
            print(model.generate("Once upon a time", max_tokens=64))

    Every call keeps what it shares with the tokens already computed, so that a growing dialogue costs
    only its new part. Calls from several threads are safe and wait for each other; to generate in
    parallel open the file once per thread, the weights are shared through the page cache. Streams of one
    model may be taken by turns, but each turn computes its prompt again.

    All failures of the library are `sqllm.Error`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        threads: int | None = None,
        ctx: int | None = None,
        kv: Literal["f16", "q8", "f32"] | None = None,
        cpu: Literal["auto", "scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "neon", "dotprod"]
        | None = None,
        exact: bool = False,
        device: Literal["auto", "cpu", "cuda"] | None = None,
        gpu_layers: int | None = None,
    ) -> None:
        """Opens `path` in milliseconds: the weights are read from the page cache as they are needed.

        `threads`: one per physical core if None. `ctx`: the most tokens that prompt and answer may have
        together; the trained context, at most 8192, if None. `kv`: the type of the KV cache, f16 if
        None; q8 takes little more than half as much. `cpu`: the instruction set of the kernels, the best
        this machine has if None. `exact`: prompts in f32 too, not in 16-bit fixed point, which is about
        twice as fast and whose logits differ by a KL divergence below 1e-4. `device`: "cpu"; "cuda", an
        NVIDIA GPU, an `Error` where that cannot be; or "auto" (None), there where it can be, else on the
        CPU, and ``info.device_absent`` says why. `gpu_layers`: how many layers the GPU gets, counted
        from the last; as many as fit into its memory if None.
        """
        self._session = Session(
            path,
            threads=threads,
            ctx=ctx,
            kv=kv,
            cpu=cpu,
            exact=exact,
            device=device,
            gpu_layers=gpu_layers,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the memory back. Closing twice is harmless, any other use of a closed model an `Error`."""
        self._session.close()

    @property
    def info(self) -> ModelInfo:
        """What the model is."""
        info = self._session.info()
        values: dict[str, Any] = {}
        for field in fields(ModelInfo):
            value = getattr(info, field.name)
            values[field.name] = text(value) if isinstance(value, ffi.CData) else value
        return ModelInfo(**values)

    @property
    def n_ctx(self) -> int:
        """The most tokens that prompt and answer may have together."""
        return self._session.n_ctx

    @property
    def n_threads(self) -> int:
        """The threads that compute."""
        return self._session.n_threads

    def generate(
        self,
        prompt: str | Sequence[int],
        max_tokens: int | None = 256,
        stop: str | Sequence[str] = (),
        *,
        lookup: bool = False,
        **sampling: Unpack[Sampling],
    ) -> str:
        """The text that continues `prompt` (a text, or tokens).

        Ends where the model ends it, after `max_tokens` (None: no limit), before the first of the `stop`
        strings, or with a warning where the context is full. `lookup` computes ahead what followed the same
        tokens before: the text is the same, and where it quotes or repeats it comes sooner. `sampling`: see
        `sqllm.Sampling`.
        """
        with self._session.lock:
            return "".join(self.stream(prompt, max_tokens, stop, lookup=lookup, **sampling))

    def stream(
        self,
        prompt: str | Sequence[int],
        max_tokens: int | None = 256,
        stop: str | Sequence[str] = (),
        *,
        lookup: bool = False,
        **sampling: Unpack[Sampling],
    ) -> Iterator[str]:
        """As `generate`, piece by piece: whole characters, and never the beginning of a stop string."""
        ids = self._prompt(prompt)
        return generate.stream_text(
            self._session, ids, max_tokens, _strings(stop), sampling, lookup=lookup, new_text=prompt == ""
        )

    def stream_tokens(
        self,
        prompt: str | Sequence[int],
        max_tokens: int | None = 256,
        *,
        lookup: bool = False,
        **sampling: Unpack[Sampling],
    ) -> Iterator[Token]:
        """As `stream`, token by token with their log-probabilities, the ending token included."""
        return generate.stream_tokens(
            self._session, self._prompt(prompt), max_tokens, sampling, lookup=lookup
        )

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        stream: Literal[False] = False,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        *,
        thinking: bool = True,
        lookup: bool = False,
        **sampling: Unpack[Sampling],
    ) -> str: ...

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        stream: Literal[True],
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        *,
        thinking: bool = True,
        lookup: bool = False,
        **sampling: Unpack[Sampling],
    ) -> Iterator[str]: ...

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        stream: bool = False,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        *,
        thinking: bool = True,
        lookup: bool = False,
        **sampling: Unpack[Sampling],
    ) -> str | Iterator[str]:
        """The answer to a dialogue: a text, or with `stream` its pieces.

        `messages` are ``{"role": …, "content": …}``, the role "system" (first only), "user" or
        "assistant". Contents are plain text: control tokens spelled in them have no power. `thinking`
        False: without thinking before the answer, for models whose template has a switch for it.
        """
        ids = chat.tokens(self._session.model, messages, thinking)
        pieces = generate.stream_text(
            self._session, ids, max_tokens, _strings(stop), sampling, lookup=lookup, new_text=True
        )
        if stream:
            return pieces
        with self._session.lock:
            return "".join(pieces)

    def tokenize(self, text: str, add_bos: bool = True, special: bool = False) -> list[int]:
        """The tokens of `text`.

        `add_bos`: put the beginning-of-sequence token first, where the model was trained to see it.
        `special`: read "<|im_end|>" and its like as the control tokens they name, else as plain text.
        """
        return tokenizer.tokenize(self._session.model, text, add_bos=add_bos, special=special)

    def detokenize(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of `ids`; control tokens are left out unless `special`."""
        return tokenizer.detokenize(self._session.model, ids, special=special).decode("utf-8", "replace")

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """After each of the tokens `ids`, the logits of the next: [n_tokens, n_vocab]."""
        with self._session.lock:
            self._session.truncate(0)
            return self._append(ids)

    def log_probabilities(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """How probable each token was after those before it: [n_tokens - 1], natural logarithms.

        Element i is the log-probability of ``ids[i + 1]`` after ``ids[: i + 1]``; the perplexity of a
        text is ``exp(-mean)``.
        """
        return self.score(ids, min(1, len(ids))).log_probabilities

    def score(self, ids: Sequence[int], n_context: int) -> Scores:
        """How probable each of ``ids[n_context:]`` was after those before it; `n_context` is 1 or more.

        The logits of the context are not computed, and what `ids` share with the tokens of the call before
        is not computed again.
        """
        if ids and not (0 <= ids[-1] < self._session.n_vocab):  # the only one that is not run
            raise Error(Status.ARGUMENT, f"token {ids[-1]}: expected 0 to {self._session.n_vocab - 1}")
        if not min(1, len(ids)) <= n_context <= len(ids):
            raise Error(Status.ARGUMENT, f"n_context: expected 1 to {len(ids)} tokens, found {n_context}")
        n_step = max(1, LOGITS_BYTES // (4 * self._session.n_vocab))
        scores, greedy = [np.empty(0)], [np.empty(0, np.bool_)]
        with self._session.lock:
            self._go_to(ids[: n_context - 1])
            for start in range(n_context - 1, len(ids) - 1, n_step):
                end = min(start + n_step, len(ids) - 1)
                logits = self._append(ids[start:end]).astype(np.float64)
                logits -= logits.max(axis=1, keepdims=True)
                chosen = logits[np.arange(end - start), ids[start + 1 : end + 1]]
                scores.append(chosen - np.log(np.exp(logits).sum(axis=1)))
                greedy.append(logits.argmax(axis=1) == ids[start + 1 : end + 1])
        return Scores(np.concatenate(scores), np.concatenate(greedy))

    def _go_to(self, ids: Sequence[int]) -> None:
        """Makes the timeline exactly `ids`."""
        if len(ids):
            self._session.sync(ffi.new("sq_token[]", list(ids)))
        else:
            self._session.truncate(0)

    def _append(self, ids: Sequence[int]) -> NDArray[np.float32]:
        logits = np.empty((len(ids), self._session.n_vocab), np.float32)
        self._session.append(ids, logits)
        return logits

    def _prompt(self, prompt: str | Sequence[int]) -> Sequence[int]:
        return self.tokenize(prompt) if isinstance(prompt, str) else prompt


def _strings(stop: str | Sequence[str]) -> Sequence[str]:
    return [stop] if isinstance(stop, str) else stop
