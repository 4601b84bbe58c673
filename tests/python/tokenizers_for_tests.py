"""Small tokenizers of every kind that the converter supports, trained or put together on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

DATA = Path(__file__).parent.parent / "data"

TEXT = (
    "The quick brown fox jumps over the lazy dog. It's 1234 o'clock; they're here, aren't they? 10 1000\n"
    "def f(x):\n    return x + 1\n\n\nÄpfel, café, 你好 世界 こんにちは 😀😀 мир   spaces    more   spaces\n"
) * 4

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _bytes_only(**options: Any) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False, **options)


def _split(pattern: str, behavior: str = "isolated", invert: bool = False) -> Any:
    return pre_tokenizers.Split(Regex(pattern), behavior=behavior, invert=invert)


# How each kind of byte-level tokenizer splits text.
BYTE_LEVEL: dict[str, Any] = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "digits": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "digit runs": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), _bytes_only()]),
    "llama3": pre_tokenizers.Sequence([_split(LLAMA3), _bytes_only()]),
    "gpt4o": pre_tokenizers.Sequence([_split(GPT4O), _bytes_only()]),
    "removed, inverted": pre_tokenizers.Sequence([_split(LLAMA3, "removed", True), _bytes_only()]),
    "deepseek": pre_tokenizers.Sequence(
        [
            _split(r"[\r\n]"),
            _split(r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿ]+"),
            _split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
            _split(r"\s+$"),
            _split(r"[一-龥ࠀ-一가-퟿]+"),
            pre_tokenizers.Digits(individual_digits=True),
            _bytes_only(),
        ]
    ),
    "punctuation": pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), _bytes_only()]),
    "literal": pre_tokenizers.Sequence([pre_tokenizers.Split(". ", behavior="isolated"), _bytes_only()]),
    "none": _bytes_only(),
}


def byte_level(kind: str = "gpt2", **options: Any) -> Any:
    """A byte-level BPE with <|im_start|>, <|im_end|> (special) and <tool> (not), trained on TEXT."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = BYTE_LEVEL[kind]
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        max_token_length=20,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return wrap(tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", **options)


def wrap(tokenizer: Tokenizer, **options: Any) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def with_bos(hf: Any) -> Any:
    """The same with <|im_start|> put first."""
    hf.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", hf.bos_token_id)]
    )
    return hf


def sentencepiece(kind: str = "v5") -> Any:
    """stories260K's SentencePiece vocabulary with one of the ways to treat spaces that models have."""
    hf = AutoTokenizer.from_pretrained(DATA / "stories260K", local_files_only=True)
    if kind == "v5":
        return hf
    parts = json.loads(hf.backend_tokenizer.to_str())
    backend = Tokenizer.from_str(json.dumps(parts))
    mark = "\u2581"
    if kind == "legacy":  # tokenizer.json of Llama 2 and Mistral 7B
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(mark), normalizers.Replace(" ", mark)])
        backend.pre_tokenizer = None
    else:
        scheme, split = {"first": ("first", False), "never": ("never", False), "split": ("always", True)}[
            kind
        ]
        backend.pre_tokenizer = pre_tokenizers.Metaspace(mark, scheme, split)
    if kind == "never":
        steps = [decoders.Replace(mark, " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence(steps)
    return wrap(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
