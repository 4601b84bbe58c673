"""Drawing tokens, and turning them into text that can be shown."""

from __future__ import annotations

import codecs
import secrets
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from . import tokenizer
from ._ffi import check, ffi, lib
from .session import Session


class Sampling(TypedDict, total=False):
    """How tokens are drawn, in this order: bias, penalties, temperature, top-k, top-p, min-p."""

    temperature: float
    """0.7; 0 always takes the most probable token."""
    top_k: int
    """40: draw from that many most probable tokens; 0: off."""
    top_p: float
    """0.95: draw from the most probable tokens that together have this share; 1: off."""
    min_p: float
    """0.05: leave out tokens with less than this share of the most probable one's; 0: off."""
    repeat_penalty: float
    """1.0: off; divides positive and multiplies negative logits of tokens seen lately."""
    presence_penalty: float
    """0.0: off; subtracted once from the logit of a token seen lately."""
    frequency_penalty: float
    """0.0: off; subtracted for each time the token was seen lately."""
    logit_bias: Mapping[int, float]
    """Added to the logits of these tokens; ``-math.inf`` forbids one."""
    seed: int | None
    """The same seed draws the same tokens; None (the default) draws anew each time."""


@dataclass(frozen=True)
class Token:
    """One generated token."""

    id: int
    text: bytes
    """As it appears in the text; may be part of a character. Empty for the token that ends an answer."""
    log_probability: float
    """Natural logarithm of the model's own probability of it, before temperature and the like."""


def sampler_create(model: Any, sampling: Sampling) -> Any:
    """An ``sq_sampler *`` that frees itself."""
    unknown = sampling.keys() - Sampling.__annotations__.keys()
    if unknown:
        raise TypeError(f"unexpected option {', '.join(sorted(unknown))}")
    given = dict(sampling)
    biases: Mapping[int, float] = sampling.get("logit_bias", {})
    given.pop("logit_bias", None)
    seed = given.pop("seed", None)
    options = ffi.new("sq_sampler_options *")
    lib.sq_sampler_defaults(options)
    for name, value in given.items():
        setattr(options, name, value)
    options.seed = secrets.randbits(64) if seed is None else seed
    pairs = ffi.new("sq_logit_bias[]", [{"token": token, "bias": bias} for token, bias in biases.items()])
    options.biases = pairs
    options.n_biases = len(pairs)
    sampler = ffi.new("sq_sampler **")
    error = ffi.new("sq_error *")
    check(lib.sq_sampler_create(model, options, sampler, error), error)
    return ffi.gc(sampler[0], lib.sq_sampler_free)


def draw(
    session: Session,
    prompt: Sequence[int],
    max_tokens: int | None,
    sampling: Sampling,
    *,
    lookup: bool,
    scored: bool = False,
) -> Iterator[tuple[int, float]]:
    """Tokens that continue `prompt`, each with its log-probability (0 unless `scored`).

    Ends after a token that ends an answer, after `max_tokens`, or, with a warning, where the context is
    full. Each step first makes the timeline what this stream needs, so that several streams of one model
    may be taken by turns.
    """
    sampler = sampler_create(session.model, sampling)
    for token in prompt:
        lib.sq_sampler_accept(sampler, token)
    timeline = ffi.new("sq_token[]", max(session.n_ctx, len(prompt)))
    timeline[0 : len(prompt)] = list(prompt)
    n_tokens = len(prompt)
    n_left = max_tokens
    while n_left is None or n_left > 0:
        with session.lock:
            session.sync(timeline[0:n_tokens], lookup=lookup)
            token = session.sample(sampler)
            score = session.log_probability(token) if scored else 0.0
        yield token, score
        if lib.sq_token_is_stop(session.model, token):
            return
        if n_left is not None:
            n_left -= 1
        if n_tokens >= session.n_ctx:
            if n_left != 0:
                warnings.warn(
                    f"the context of {session.n_ctx} tokens is full: the text ends here", stacklevel=2
                )
            return
        lib.sq_sampler_accept(sampler, token)
        timeline[n_tokens] = token
        n_tokens += 1


def stream_tokens(
    session: Session, prompt: Sequence[int], max_tokens: int | None, sampling: Sampling, *, lookup: bool
) -> Iterator[Token]:
    """Tokens that continue `prompt`, with their probabilities."""
    for token, score in draw(session, prompt, max_tokens, sampling, lookup=lookup, scored=True):
        stops = lib.sq_token_is_stop(session.model, token)
        yield Token(token, b"" if stops else tokenizer.token_text(session.model, token), score)


def stream_text(
    session: Session,
    prompt: Sequence[int],
    max_tokens: int | None,
    stop: Sequence[str],
    sampling: Sampling,
    *,
    lookup: bool,
    new_text: bool = False,
) -> Iterator[str]:
    """The text that continues `prompt`, in whole characters; ends before the first string of `stop`.

    With `new_text` it does not continue a text, but begins one: no space before it.
    """
    texts = _token_texts(session, prompt, max_tokens, sampling, lookup, new_text)
    return until_stop(whole_characters(texts), stop)


def _token_texts(
    session: Session,
    prompt: Sequence[int],
    max_tokens: int | None,
    sampling: Sampling,
    lookup: bool,
    new_text: bool,
) -> Iterator[bytes]:
    for token, _ in draw(session, prompt, max_tokens, sampling, lookup=lookup):
        if lib.sq_token_is_stop(session.model, token):
            return
        if new_text:
            yield tokenizer.detokenize(session.model, [token])
        else:
            yield tokenizer.token_text(session.model, token)
        new_text = False


def whole_characters(texts: Iterable[bytes]) -> Iterator[str]:
    """Decodes UTF-8 that may be cut anywhere; what is no UTF-8 becomes U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for data in texts:
        if text := decoder.decode(data):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


def until_stop(texts: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """The text before the first string of `stop`; what may be the beginning of one is held back."""
    if "" in stop:
        raise ValueError("stop: an empty string would end every text")
    held = ""
    for text in texts:
        held += text
        ends = [at for at in map(held.find, stop) if at >= 0]
        if ends:
            if held[: min(ends)]:
                yield held[: min(ends)]
            return
        n_hold = max((_overlap(held, word) for word in stop), default=0)
        ready = held[: len(held) - n_hold]
        held = held[len(ready) :]
        if ready:
            yield ready
    if held:
        yield held


def _overlap(text: str, word: str) -> int:
    """Length of the longest proper prefix of `word` that `text` ends with."""
    return next((n for n in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:n])), 0)
