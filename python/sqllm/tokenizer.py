"""Text to tokens and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from ._ffi import check, ffi, lib


def fill(call: Callable[[Any, int, Any], None], ctype: str, capacity: int) -> Any:
    """What a C function writes that takes a buffer and says how much there is: list[int], or bytes for char.

    `call(buffer, capacity, count)` is repeated once with enough room where `capacity` was too small.
    """
    count = ffi.new("size_t *")
    buffer = ffi.new(f"{ctype}[]", max(capacity, 1))
    call(buffer, capacity, count)
    if count[0] > capacity:
        buffer = ffi.new(f"{ctype}[]", count[0])
        call(buffer, count[0], count)
    return ffi.unpack(buffer, count[0])


def tokenize(
    model: Any, text: str, *, add_bos: bool = False, special: bool = False, continues: bool = False
) -> list[int]:
    """The tokens of `text`; the flags are those of ``sq_tokenize``."""
    data = text.encode("utf-8")
    flags = (
        (lib.SQ_TOKENIZE_BOS if add_bos else 0)
        | (lib.SQ_TOKENIZE_SPECIAL if special else 0)
        | (lib.SQ_TOKENIZE_CONTINUE if continues else 0)
    )
    error = ffi.new("sq_error *")

    def call(tokens: Any, capacity: int, n_tokens: Any) -> None:
        check(lib.sq_tokenize(model, data, len(data), flags, tokens, capacity, n_tokens, error), error)

    return cast(list[int], fill(call, "sq_token", len(data) + 2))


def detokenize(model: Any, tokens: Sequence[int], *, special: bool = False) -> bytes:
    """The bytes of `tokens`, as the original tokenizer decodes them."""
    ids = ffi.new("sq_token[]", list(tokens))
    error = ffi.new("sq_error *")

    def call(text: Any, capacity: int, n_bytes: Any) -> None:
        check(lib.sq_detokenize(model, ids, len(ids), special, text, capacity, n_bytes, error), error)

    return cast(bytes, fill(call, "char", 8 * len(ids)))


def token_text(model: Any, token: int, *, special: bool = False) -> bytes:
    """The bytes of one token as they appear in running text; possibly a part of a character."""
    n_bytes = ffi.new("size_t *")
    text = lib.sq_token_text(model, token, special, n_bytes)
    return b"" if text == ffi.NULL else bytes(ffi.buffer(text, n_bytes[0]))
