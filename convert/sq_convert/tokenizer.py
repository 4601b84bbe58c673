"""A transformers tokenizer as the GGUF keys that the C runtime reads (docs/FORMAT.md, section 4)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf import GGUFValueType, GGUFWriter, TokenType

from . import pattern
from .errors import ConvertError
from .nfc import nfc_ranges

SPACE_MARK = "\u2581"  # SentencePiece's spelling of a space
TOKEN_BYTES_MAX = 1024

# What llama.cpp's names of pre-tokenizers stand for, where transformers does not know them.
_DIGITS_FIRST = {"smollm", "starcoder", "refact", "command-r", "codeshell"}
_AS_GPT2 = {"", "default", "gpt-2", "gpt2", "mpt", "olmo", "jais", "phi-2"}
_WHOLE_TOKENS_FIRST = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0",
                       "lfm2", "tekken"}  # fmt: skip
_NORMALIZED = {"qwen2", "qwen35"}  # to NFC


@dataclass(frozen=True)
class TokenizerData:
    """All that goes into the file. Lists by token id have one entry for each row of the embedding."""

    model: str  # "llama": SentencePiece BPE; "gpt2": byte-level BPE
    tokens: list[str]
    types: list[int]  # gguf.TokenType
    scores: list[float] | None  # for readers that know SentencePiece by scores; the merges decide
    merges: list[str]
    patterns: list[str]  # PCRE2
    bos: int | None
    eos: int | None
    unknown: int | None
    padding: int | None
    stop_ids: list[int]
    add_bos: bool
    add_space_prefix: bool
    prefix_at_start: bool
    prefix_if_missing: bool
    ignore_merges: bool
    nfc_ranges: Sequence[int]  # of the characters that NFC is about; empty: text is not normalized
    strip_left_ids: list[int]  # special tokens that swallow the white space before them
    strip_right_ids: list[int]  # the same behind them
    chat_template: str | None

    def write(self, writer: GGUFWriter) -> None:
        """Adds the keys of section 4, and the Jinja text."""
        writer.add_tokenizer_model(self.model)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        _add_strings(writer, "tokenizer.ggml.merges", self.merges)
        for key, value in (
            ("bos", self.bos),
            ("eos", self.eos),
            ("unknown", self.unknown),
            ("padding", self.padding),
        ):
            if value is not None:
                writer.add_uint32(f"tokenizer.ggml.{key}_token_id", value)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_space_prefix(self.add_space_prefix)
        writer.add_bool("squeezellm.tokenizer.prefix_at_start", self.prefix_at_start)
        writer.add_bool("squeezellm.tokenizer.prefix_if_missing", self.prefix_if_missing)
        writer.add_bool("squeezellm.tokenizer.ignore_merges", self.ignore_merges)
        _add_strings(writer, "squeezellm.tokenizer.patterns", self.patterns)
        _add_numbers(writer, "squeezellm.tokenizer.nfc_ranges", self.nfc_ranges)
        _add_numbers(writer, "squeezellm.tokenizer.strip_left_ids", self.strip_left_ids)
        _add_numbers(writer, "squeezellm.tokenizer.strip_right_ids", self.strip_right_ids)
        _add_numbers(writer, "squeezellm.stop_token_ids", self.stop_ids)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)

    def with_stops(self, ids: Iterable[int]) -> TokenizerData:
        """The same, with more tokens that end an answer."""
        return replace(self, stop_ids=sorted({*self.stop_ids, *ids}))


def repair_gguf_tokenizer(hf: Any, path: Path) -> None:
    """Mends, in place, what transformers leaves out when it builds a tokenizer from a GGUF file.

    Raises ConvertError where the file names a pre-tokenizer that nobody here knows.
    """
    from gguf import GGUFReader
    from tokenizers import normalizers, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    reader = GGUFReader(path)
    model, pre = _string(reader, "tokenizer.ggml.model"), _string(reader, "tokenizer.ggml.pre")
    if model != "gpt2":
        return
    backend = hf.backend_tokenizer
    if pre in _DIGITS_FIRST:
        steps = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
        backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    elif pre not in _AS_GPT2 and pre not in GGUF_PRE_TOKENIZER_SPLITS:
        raise ConvertError(
            f"{path}: tokenizer.ggml.pre is {pre!r}, a way of splitting text that is not known here; convert "
            "the model's Hugging Face folder instead."
        )
    if pre in _NORMALIZED:
        backend.normalizer = normalizers.NFC()
    if pre in _WHOLE_TOKENS_FIRST:
        backend.model.ignore_merges = True


def export_tokenizer(hf: Any, n_vocab: int, eos_ids: Iterable[int] = ()) -> TokenizerData:
    """Reads everything from a transformers tokenizer.

    `n_vocab` is the number of rows of the embedding: shorter vocabularies are filled up with unused tokens.
    `eos_ids` end an answer beside the tokenizer's own (generation_config's eos_token_id).
    Raises ConvertError where the tokenizer works in a way that the C runtime does not.
    """
    backend = getattr(hf, "backend_tokenizer", None)
    if backend is None:
        raise ConvertError(
            f"{type(hf).__name__}: a tokenizer in Python code; only those of the tokenizers library "
            "(tokenizer.json, or SentencePiece's tokenizer.model) are supported."
        )
    parts = json.loads(backend.to_str())
    model = parts["model"]
    _check_model(model)
    kind = "gpt2" if _has_byte_level(parts["pre_tokenizer"]) else "llama"
    prefix, nfc = _normalizer(parts["normalizer"], kind)
    patterns, prefix = _pre_tokenizer(parts["pre_tokenizer"], kind, prefix)
    tokens, types = _vocabulary(hf, parts, kind, n_vocab)
    merges = _merges(model["merges"])
    unknown = _unknown(hf, model, types)
    eos = hf.eos_token_id
    return TokenizerData(
        model=kind,
        tokens=tokens,
        types=types,
        scores=_scores(tokens, merges) if kind == "llama" else None,
        merges=merges,
        patterns=patterns,
        bos=hf.bos_token_id,
        eos=eos,
        unknown=unknown,
        padding=hf.pad_token_id,
        stop_ids=sorted({*eos_ids, *([] if eos is None else [eos])}),
        # The end of sequence that some put behind a text has no place in a text that is to go on.
        add_bos=bool(special_tokens_around(hf)[0]),
        add_space_prefix=prefix.add,
        prefix_at_start=prefix.at_start,
        prefix_if_missing=prefix.if_missing,
        ignore_merges=bool(model.get("ignore_merges")),
        nfc_ranges=nfc_ranges() if nfc else (),
        strip_left_ids=[added["id"] for added in parts["added_tokens"] if added["lstrip"]],
        strip_right_ids=[added["id"] for added in parts["added_tokens"] if added["rstrip"]],
        chat_template=hf.get_chat_template() if hf.chat_template else None,
    )


# ---- how text is prepared -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Prefix:
    """The space that SentencePiece puts before a text."""

    add: bool = False
    at_start: bool = False  # only at the very start, not behind each special token
    if_missing: bool = False  # only where the text does not start with one


def _steps(part: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for item in part[inner] for step in _steps(item, inner)]
    return [part]


def _has_byte_level(pre_tokenizer: dict[str, Any] | None) -> bool:
    return any(step["type"] == "ByteLevel" for step in _steps(pre_tokenizer, "pretokenizers"))


def _normalizer(part: dict[str, Any] | None, kind: str) -> tuple[_Prefix, bool]:
    """What SentencePiece does to spaces, or NFC."""
    prefix, nfc = _Prefix(), False
    for step in _steps(part, "normalizers"):
        if kind == "gpt2" and step["type"] == "NFC":
            nfc = True
        elif kind == "llama" and step["type"] == "Prepend" and step["prepend"] == SPACE_MARK:
            prefix = _Prefix(add=True)
        elif (
            kind == "llama"
            and step["type"] == "Replace"
            and step["pattern"] == {"String": " "}
            and step["content"] == SPACE_MARK
        ):
            continue  # every vocabulary of this kind spells spaces so
        else:
            raise _refusal("normalizer", step)
    return prefix, nfc


def _pre_tokenizer(part: dict[str, Any] | None, kind: str, prefix: _Prefix) -> tuple[list[str], _Prefix]:
    patterns: list[str] = []
    for step in _steps(part, "pretokenizers"):
        match step["type"]:
            case "ByteLevel" if not step["add_prefix_space"]:
                patterns += [pattern.to_pcre2(pattern.GPT2)] if step.get("use_regex", True) else []
            case "Split" if kind == "llama" and step["pattern"] == {"String": " "}:
                continue  # spaces are marks by now: nothing matches
            case "Split":
                patterns.append(_split(step))
            case "Digits":
                patterns.append(r"\p{N}" if step["individual_digits"] else r"\p{N}+")
            case "Punctuation" if step["behavior"] == "Isolated":
                patterns.append(r"[!-/:-@\[-`{-~\p{P}]")
            case "Metaspace" if kind == "llama" and step["replacement"] == SPACE_MARK:
                scheme = step.get("prepend_scheme", "always")
                prefix = _Prefix(scheme != "never", scheme == "first", if_missing=True)
                patterns += [" [^ ]*"] if step.get("split", True) else []
            case _:
                raise _refusal("pre-tokenizer", step)
    return patterns, prefix


def _split(step: dict[str, Any]) -> str:
    """A split whose matches, and what lies between them, are pieces.

    Isolated means that, inverted or not. "Removed, inverted" drops what lies between matches, which for
    patterns that match everything is nothing; whether they do, verification shows.
    """
    isolated = step["behavior"] == "Isolated" or (step["behavior"] == "Removed" and step["invert"])
    if not isolated:
        raise _refusal("pre-tokenizer", step)
    kind, text = next(iter(step["pattern"].items()))
    return pattern.to_pcre2(text) if kind == "Regex" else pattern.literal(text)


def _refusal(part: str, step: dict[str, Any]) -> ConvertError:
    return ConvertError(
        f"The tokenizer's {part} has the step {json.dumps(step, ensure_ascii=False)[:200]}, which the C "
        "runtime does not know; this tokenizer is not supported."
    )


def special_tokens_around(hf: Any) -> tuple[list[int], list[int]]:
    """What encoding puts before and behind a text: beginning and end of sequence, or nothing."""
    plain = hf("a", add_special_tokens=False).input_ids
    full = hf("a", add_special_tokens=True).input_ids
    before = [[], [hf.bos_token_id]] if hf.bos_token_id is not None else [[]]
    behind = [[], [hf.eos_token_id]] if hf.eos_token_id is not None else [[]]
    for around in itertools.product(before, behind):
        if full == [*around[0], *plain, *around[1]]:
            return around
    raise ConvertError(
        f"The tokenizer encodes 'a' as {plain}, and as {full} with its special tokens; only a "
        "beginning-of-sequence token put first and an end-of-sequence token put last are supported."
    )


# ---- vocabulary and merges ----------------------------------------------------------------------


def _check_model(model: dict[str, Any]) -> None:
    if model["type"] != "BPE":
        raise ConvertError(f"The tokenizer is a {model['type']} model; only BPE is supported.")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ConvertError(
                f"The tokenizer's BPE model has {key} = {model[key]!r}, which is not supported."
            )


def _vocabulary(hf: Any, parts: dict[str, Any], kind: str, n_vocab: int) -> tuple[list[str], list[int]]:
    tokens: list[str | None] = [None] * n_vocab
    types = [int(TokenType.UNUSED)] * n_vocab
    names = hf.get_vocab()
    if names and max(names.values()) >= n_vocab:
        name = max(names, key=lambda key: names[key])
        raise ConvertError(
            f"The tokenizer has a token {name!r} with id {names[name]}, but the model's embedding has "
            f"{n_vocab} rows; tokenizer and weights do not belong together."
        )
    byte_names = {f"<0x{byte:02X}>" for byte in range(256)}
    for name, token in names.items():
        if len(name.encode()) > TOKEN_BYTES_MAX:
            raise ConvertError(
                f"Token {token} has {len(name.encode())} bytes; at most {TOKEN_BYTES_MAX} are supported."
            )
        is_byte = kind == "llama" and name in byte_names and parts["model"].get("byte_fallback")
        if name:
            tokens[token] = name
            types[token] = int(TokenType.BYTE if is_byte else TokenType.NORMAL)
    for added in parts["added_tokens"]:
        _check_added(added)
        types[added["id"]] = int(TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED)
    for index, name in enumerate(tokens):
        if name is None:
            tokens[index] = _unused_name(index, names)
    return [name for name in tokens if name is not None], types


def _unused_name(index: int, names: dict[str, int]) -> str:
    name = f"[PAD{index}]"
    return name if name not in names else f"<unused-{index}>"


def _check_added(added: dict[str, Any]) -> None:
    if added["single_word"]:
        raise ConvertError(
            f"The tokenizer's special token {added['content']!r} has the property 'single_word', which the C "
            "runtime does not know; this tokenizer is not supported."
        )


def _merges(merges: Sequence[Any]) -> list[str]:
    result = []
    for merge in merges:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        if " " in left or " " in right:
            raise ConvertError(
                f"The tokenizer merges {left!r} and {right!r}: a space within is not supported."
            )
        result.append(f"{left} {right}")
    return result


def _scores(tokens: Sequence[str], merges: Sequence[str]) -> list[float]:
    """Later merges score lower, tokens that no merge makes lowest."""
    rank: dict[str, int] = {}
    for index, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", ""), index)
    return [-float(rank.get(token, len(merges))) for token in tokens]


def _unknown(hf: Any, model: dict[str, Any], types: Sequence[int]) -> int | None:
    """What text without a token becomes; None: it is left out, as byte-level tokenizers do."""
    if model.get("unk_token"):
        return int(hf.convert_tokens_to_ids(model["unk_token"]))
    has_all_bytes = list(types).count(TokenType.BYTE) == 256
    if has_all_bytes and hf.unk_token_id is not None:
        return int(hf.unk_token_id)  # for other readers: there is no such text
    return None


# ---- small helpers ------------------------------------------------------------------------------


def _add_strings(writer: GGUFWriter, key: str, values: Sequence[str]) -> None:
    if values:  # the gguf package writes no empty lists
        writer.add_key_value(key, list(values), GGUFValueType.ARRAY, GGUFValueType.STRING)


def _add_numbers(writer: GGUFWriter, key: str, values: Sequence[int]) -> None:
    if values:
        writer.add_key_value(key, list(values), GGUFValueType.ARRAY, GGUFValueType.INT32)


def _string(reader: Any, key: str) -> str:
    field = reader.get_field(key)
    return str(field.contents()) if field else ""
