"""The tokenizer of a Hugging Face folder, read by transformers; code that lies in the folder is never run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import decoders, normalizers

from .errors import ConvertError, first_line
from .tokenizer import SPACE_MARK
from .xgen import build_xgen, is_xgen


def load_tokenizer(folder: Path) -> Any:
    """A transformers tokenizer; ConvertError where the folder holds none that can be read."""
    from transformers import AutoTokenizer

    config = _read_config(folder)
    if is_xgen(config):
        return build_xgen(folder, config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever a strange file leads to
        raise ConvertError(
            f"{folder}: transformers reads no tokenizer from it ({first_line(error)}). Put a sound "
            "tokenizer.json, tokenizer.model, or vocab.json with merges.txt there."
        ) from error
    if (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file():
        _repair_sentencepiece(tokenizer, folder / "tokenizer.model", config)
    return tokenizer


def _read_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json; empty where there is none, or none that transformers would read."""
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _repair_sentencepiece(tokenizer: Any, path: Path, config: dict[str, Any]) -> None:
    """Mends, in place, what transformers 5 leaves out when it builds a tokenizer from tokenizer.model alone.

    The space that the model file wants before a text (for every family but Llama), and the beginning-of-
    sequence token, which these families' tokenizers put first unless their configuration says otherwise.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from sentencepiece import sentencepiece_model_pb2 as pb2

    proto: Any = pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError:  # a tiktoken vocabulary of the same name
        return
    backend = tokenizer.backend_tokenizer
    if proto.normalizer_spec.add_dummy_prefix and backend.pre_tokenizer is None:
        prepend = normalizers.Prepend(SPACE_MARK)
        backend.normalizer = normalizers.Sequence([prepend, normalizers.Replace(" ", SPACE_MARK)])
        backend.decoder = decoders.Sequence([backend.decoder, decoders.Strip(" ", 1, 0)])
    if "add_bos_token" not in config and tokenizer.bos_token is not None:
        tokenizer.add_bos_token = True
