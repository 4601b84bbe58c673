"""The C tokenizer and chat table, to be checked against transformers while converting.

Tokenizer and chat keys alone make a small GGUF file; libsq opens it without a model
(runtime/tokenizer/codec.h).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from gguf import GGUFWriter

from .errors import ConvertError

_DECLARATIONS = """
typedef struct sq_codec sq_codec;
sq_status sq_codec_open(const char *path, sq_codec **codec, sq_error *error);
void sq_codec_close(sq_codec *codec);
sq_status sq_codec_encode(const sq_codec *codec, const char *text, size_t n_bytes, int flags,
                          sq_token *tokens, size_t capacity, size_t *n_tokens, sq_error *error);
sq_status sq_codec_decode(const sq_codec *codec, const sq_token *tokens, size_t n_tokens, bool special,
                          char *text, size_t capacity, size_t *n_bytes, sq_error *error);
const char *sq_codec_text(const sq_codec *codec, sq_token token, bool special, size_t *n_bytes);
sq_status sq_codec_chat(const sq_codec *codec, const sq_message *messages, size_t n_messages, int flags,
                        sq_token *tokens, size_t capacity, size_t *n_tokens, sq_error *error);
"""


class Codec:
    """libsq's tokenizer and chat table for the keys that `add_keys` writes.

    Raises ConvertError with the library's message where it refuses them. A context manager.
    """

    def __init__(self, add_keys: Callable[[GGUFWriter], None]) -> None:
        from sqllm._ffi import ffi, lib

        self._ffi, self._lib = ffi, lib
        if not hasattr(lib, "sq_codec_open"):
            ffi.cdef(_DECLARATIONS)
        self._folder = tempfile.TemporaryDirectory(prefix="sq-convert-")
        path = Path(self._folder.name) / "tokenizer.gguf"
        writer = GGUFWriter(path, "llama")
        try:
            add_keys(writer)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        finally:
            writer.close()
        self._error = ffi.new("sq_error *")
        handle = ffi.new("sq_codec **")
        try:
            self._check(lib.sq_codec_open(str(path).encode(), handle, self._error))
        except ConvertError:
            self._folder.cleanup()
            raise
        self._handle = ffi.gc(handle[0], lib.sq_codec_close)

    def __enter__(self) -> Codec:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._ffi.release(self._handle)
        self._folder.cleanup()

    def encode(self, text: str | bytes, *, bos: bool = False, special: bool = True) -> list[int]:
        data = text.encode("utf-8") if isinstance(text, str) else text
        flags = (self._lib.SQ_TOKENIZE_BOS if bos else 0) | (self._lib.SQ_TOKENIZE_SPECIAL if special else 0)
        return self._ids(len(data) + 2, self._lib.sq_codec_encode, data, len(data), flags)

    def chat(self, messages: Sequence[dict[str, str]], generate: bool, *, thinking: bool = True) -> list[int]:
        new = self._ffi.new
        strings = [
            (new("char[]", m["role"].encode()), new("char[]", m["content"].encode())) for m in messages
        ]
        array = new("sq_message[]", strings)
        capacity = 4096 + 2 * sum(len(m["content"].encode()) for m in messages)
        flags = (self._lib.SQ_CHAT_GENERATE if generate else 0) | (
            0 if thinking else self._lib.SQ_CHAT_NO_THINKING
        )
        return self._ids(capacity, self._lib.sq_codec_chat, array, len(strings), flags)

    def decode(self, ids: Sequence[int], *, special: bool) -> str:
        return self.decode_bytes(ids, special=special).decode("utf-8", "replace")

    def decode_bytes(self, ids: Sequence[int], *, special: bool) -> bytes:
        tokens = self._ffi.new("sq_token[]", list(ids))
        count = self._ffi.new("size_t *")
        call = self._lib.sq_codec_decode
        self._check(call(self._handle, tokens, len(ids), special, self._ffi.NULL, 0, count, self._error))
        text = self._ffi.new("char[]", max(1, count[0]))
        self._check(call(self._handle, tokens, len(ids), special, text, count[0], count, self._error))
        return bytes(self._ffi.buffer(text, count[0]))

    def token_bytes(self, token: int) -> bytes:
        """As the token appears in running text; empty for control tokens."""
        count = self._ffi.new("size_t *")
        text = self._lib.sq_codec_text(self._handle, token, False, count)
        return bytes(self._ffi.buffer(text, count[0])) if text else b""

    def _ids(self, capacity: int, call: Any, *arguments: Any) -> list[int]:
        count = self._ffi.new("size_t *")
        tokens = self._ffi.new("sq_token[]", capacity)
        self._check(call(self._handle, *arguments, tokens, capacity, count, self._error))
        if count[0] > capacity:
            return self._ids(count[0], call, *arguments)
        return list(tokens[0 : count[0]])

    def _check(self, status: int) -> None:
        if status != self._lib.SQ_OK:
            message = self._ffi.string(self._error.message).decode("utf-8", "replace")
            raise ConvertError(f"The C tokenizer refuses it: {message}")
