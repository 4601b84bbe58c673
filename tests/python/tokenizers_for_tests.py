"""Small tokenizers of every kind that the converter supports, trained or put together on the spot."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
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
from transformers.convert_slow_tokenizer import bytes_to_unicode

DATA = Path(__file__).parent.parent / "data"

TEXT = (
    "The quick brown fox jumps over the lazy dog. It's 1234 o'clock; they're here, aren't they? 10 1000\n"
    "def f(x):\n    return x + 1\n\n\nÄpfel, café, 你好 世界 こんにちは 😀😀 мир   spaces    more   spaces\n"
) * 4

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
    r"|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
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
    "qwen": pre_tokenizers.Sequence([_split(QWEN), _bytes_only()]),
    "cl100k": pre_tokenizers.Sequence([_split(CL100K), _bytes_only()]),
    "tekken": pre_tokenizers.Sequence([_split(TEKKEN), _bytes_only()]),
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


def byte_level(kind: str = "gpt2", texts: Sequence[str] = (TEXT,), n_words: int = 500, **options: Any) -> Any:
    """A byte-level BPE with <|im_start|>, <|im_end|> (special) and <tool> (not), trained on `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = BYTE_LEVEL[kind]
    if kind == "qwen":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_words,
        max_token_length=20,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
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


def whole_words(hf: Any) -> Any:
    """The same, as Llama 3 does it: a piece that is a token is taken, though no merges lead to it."""
    parts = json.loads(hf.backend_tokenizer.to_str())
    parts["model"]["ignore_merges"] = True
    parts["model"]["merges"] = [merge for i, merge in enumerate(parts["model"]["merges"]) if i % 7 != 3]
    return wrap(Tokenizer.from_str(json.dumps(parts)), bos_token="<|im_start|>", eos_token="<|im_end|>")


def with_swallowing_tokens(hf: Any) -> Any:
    """The same with special tokens that swallow the white space beside them, as Phi-3's do."""
    hf.backend_tokenizer.add_special_tokens(
        [AddedToken("<right>", rstrip=True), AddedToken("<left>", lstrip=True)]
    )
    hf.backend_tokenizer.add_special_tokens([AddedToken("<both>", lstrip=True, rstrip=True)])
    return hf


def sentencepiece(kind: str = "v5") -> Any:
    """stories260K's SentencePiece vocabulary with one of the ways to treat spaces that models have."""
    hf = AutoTokenizer.from_pretrained(DATA / "stories260K", local_files_only=True)
    if kind == "v5":
        return hf
    parts = json.loads(hf.backend_tokenizer.to_str())
    backend = Tokenizer.from_str(json.dumps(parts))
    mark = "\u2581"
    if kind == "gemma":
        backend.normalizer = normalizers.Replace(" ", mark)
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        backend.decoder = decoders.Sequence(
            [decoders.Replace(mark, " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        runs = [character * n for character in ("\n", mark) for n in (2, 3, 5)]
        backend.add_tokens([AddedToken(run, normalized=False) for run in runs])
        return wrap(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
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


# Model files of SentencePiece as families have them, and what lies beside them.
SENTENCEPIECE_FILES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "llama": ({}, "llama", {"tokenizer_class": "LlamaTokenizer"}),
    "llama, legacy": ({}, "llama", {"tokenizer_class": "LlamaTokenizer", "legacy": True}),
    "mistral": ({}, "mistral", {"tokenizer_class": "LlamaTokenizer"}),
    "no class": ({}, "phi3", {}),
    "gemma": (
        {"add_dummy_prefix": False, "bos_piece": "<bos>", "eos_piece": "<eos>", "pad_piece": "<pad>",
         "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3,
         "user_defined_symbols": ["<mask>", *("\n" * n for n in (1, 2, 3)), "<start_of_turn>"]},
        "gemma3_text",
        {"tokenizer_class": "GemmaTokenizer"},
    ),
}  # fmt: skip


def sentencepiece_folder(folder: Path, kind: str) -> Path:
    """A folder with tokenizer.model, trained on TEXT, and no tokenizer.json."""
    from sentencepiece import SentencePieceTrainer

    options, model_type, config = SENTENCEPIECE_FILES[kind]
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return write_folder(folder, model_type, config)


def write_folder(folder: Path, model_type: str, config: dict[str, Any]) -> Path:
    """Adds config.json and tokenizer_config.json."""
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def gpt2_ranks() -> dict[bytes, int]:
    """A vocabulary of GPT-2's size: one trained on TEXT, filled up with what no text leads to."""
    spelling = {character: byte for byte, character in bytes_to_unicode().items()}
    trained = byte_level().backend_tokenizer.get_vocab(with_added_tokens=False)
    tokens = [bytes(spelling[c] for c in name) for name in sorted(trained, key=lambda name: trained[name])]
    tokens += [f"\0{index}".encode() for index in range(50256 - len(tokens))]
    return {token: rank for rank, token in enumerate(tokens)}
