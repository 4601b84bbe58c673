"""XGen's tokenizer, which its folder holds as Python code: GPT-2's vocabulary by tiktoken, and more tokens.

The code is never executed. What it does is built here from GPT-2's vocabulary, which the code would download
and which a user has to put into the folder.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from .errors import ConvertError

_N_RANKS = 50256  # GPT-2's tokens; the next id is <|endoftext|>
_END = "<|endoftext|>"
_CODE = ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "filename", "gh_stars", "issue_start",
         "issue_comment", "issue_closed", "jupyter_start", "jupyter_text", "jupyter_code", "jupyter_output",
         "empty_output", "commit_before", "commit_msg", "commit_after", "reponame")  # fmt: skip
_SPECIAL = (
    *_CODE,
    *(f"dummy_{i}" for i in range(4)),
    "sep",
    "eom",
    *(f"mask_{i}" for i in range(881, 0, -1)),
)


def is_xgen(config: dict[str, Any]) -> bool:
    """Whether a tokenizer_config.json is XGen's."""
    return str(config.get("tokenizer_class")).lower() == "xgentokenizer"


def build_xgen(folder: Path, config: dict[str, Any]) -> Any:
    """A transformers tokenizer that gives the ids of XGen's own.

    Raises ConvertError where the folder holds no GPT-2 vocabulary, or another one.
    """
    from transformers import PreTrainedTokenizerFast

    ranks = xgen_ranks(_gpt2_ranks(folder))
    names = _byte_names()
    spelled = {token: "".join(names[byte] for byte in token) for token in ranks}
    special = xgen_special_tokens()
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()} | special
    merges = [(spelled[left], spelled[right]) for left, right in _merges(ranks)]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_END, chat_template=config.get("chat_template")
    )


def xgen_ranks(gpt2: dict[bytes, int]) -> dict[bytes, int]:
    """Ranks, which are ids, with the runs of spaces and tabs that replace GPT-2's own."""
    runs = [b" " * n for n in range(31, 1, -1)] + [b"\t" * n for n in range(9, 1, -1)]
    return gpt2 | {run: _N_RANKS + 1 + index for index, run in enumerate(runs)}


def xgen_special_tokens() -> dict[str, int]:
    """Ids of the special tokens; the last one is 51199."""
    return {_END: _N_RANKS} | {f"<{name}>": 50295 + index for index, name in enumerate(_SPECIAL)}


def _gpt2_ranks(folder: Path) -> dict[bytes, int]:
    vocabulary, files = folder / "vocab.json", sorted(folder.glob("*.tiktoken"))
    try:
        if vocabulary.is_file():
            bytes_of = {name: byte for byte, name in _byte_names().items()}
            entries = json.loads(vocabulary.read_text(encoding="utf-8"))
            ranks = {bytes(bytes_of[c] for c in name): int(entries[name]) for name in entries if name != _END}
        elif files:
            lines = [line.split() for line in files[0].read_bytes().splitlines() if line]
            ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        else:
            raise ConvertError(
                f"{folder}: XGen's tokenizer is Python code, which is never executed here; put GPT-2's "
                "vocab.json, or the same vocabulary as a .tiktoken file (r50k_base.tiktoken), beside it."
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConvertError(f"{folder}: the vocabulary is damaged: {error!r}") from error
    if sorted(ranks.values()) != list(range(_N_RANKS)):
        raise ConvertError(
            f"{folder}: the vocabulary is not GPT-2's, on which XGen's tokenizer is built: expected the "
            f"ids 0 to {_N_RANKS - 1}, each once, found {len(ranks)} tokens."
        )
    return ranks


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """tiktoken joins any two tokens that are one together, by the rank of the whole: all ways to cut each."""
    return [
        (token[:cut], token[cut:])
        for token in sorted(ranks, key=lambda token: ranks[token])
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]


def _byte_names() -> dict[int, str]:
    """GPT-2's printable stand-ins for bytes."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}
