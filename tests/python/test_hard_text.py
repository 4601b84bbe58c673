"""The C library's tokens beside transformers' on thousands of hard strings, for every kind of tokenizer."""

from __future__ import annotations

import base64
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hard_text import hard_strings, invalid_utf8
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sq_convert.codec import Codec
from sq_convert.errors import ConvertError
from sq_convert.hf_tokenizer import load_tokenizer
from sq_convert.tokenizer import SPACE_MARK, export_tokenizer
from sq_convert.verify import compare
from sq_convert.xgen import xgen_ranks, xgen_special_tokens
from tokenizers_for_tests import (
    BYTE_LEVEL,
    SENTENCEPIECE_FILES,
    TEXT,
    byte_level,
    gpt2_ranks,
    sentencepiece,
    sentencepiece_folder,
    whole_words,
    with_bos,
    with_swallowing_tokens,
    write_folder,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

STRINGS = hard_strings()
# A real vocabulary, by a folder that a checkout may have beside it.
GPT2 = Path(__file__).parents[3] / "shared" / "models" / "gpt2-tokenizer"


def trained(kind: str) -> Any:
    return byte_level(kind, texts=(TEXT, *STRINGS[:800]), n_words=1500)


def opt_folder(folder: Path) -> Path:
    """OPT's: GPT-2's vocabulary behind four tokens of its own, one of which begins every text."""
    names = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    files = trained("gpt2").save_pretrained(folder)
    parts = json.loads((folder / "tokenizer.json").read_text())["model"]
    for path in files:
        Path(path).unlink()
    vocabulary = names | {name: index + 4 for index, name in enumerate(parts["vocab"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(" ".join(merge) for merge in parts["merges"]))
    token = {"__type": "AddedToken", "content": "</s>", "lstrip": False, "normalized": True, "rstrip": False,
             "single_word": False}  # fmt: skip
    config = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "pad_token": "<pad>"}
    config |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), token)
    return write_folder(folder, "opt", config)


@functools.cache
def tokenizer(kind: str) -> Any:
    if kind in BYTE_LEVEL:
        return trained(kind)
    match kind:
        case "whole words":
            return whole_words(trained("llama3"))
        case "bos":
            return with_bos(trained("llama3"))
        case "swallowing":
            return with_swallowing_tokens(trained("gpt2"))
        case "swallowing, sentencepiece":
            return with_swallowing_tokens(sentencepiece("legacy"))
    return sentencepiece(kind)


@functools.cache
def exported(kind: str) -> tuple[Any, Any, Codec]:
    hf = tokenizer(kind)
    data = export_tokenizer(hf, len(hf))
    return hf, data, Codec(data.write)


SENTENCEPIECE = ("v5", "legacy", "first", "never", "split", "gemma", "swallowing, sentencepiece")
KINDS = (*BYTE_LEVEL, "whole words", "bos", "swallowing", *SENTENCEPIECE)


def restored(text: str, kind: str) -> str:
    """What is left of a text that has been to tokens and back."""
    return text.replace(SPACE_MARK, " ") if kind in SENTENCEPIECE else text


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_transformers(kind: str) -> None:
    hf, data, codec = exported(kind)
    assert compare(hf, data, codec, STRINGS) > 10_000


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_give_the_text_back(kind: str) -> None:
    hf, data, codec = exported(kind)
    for text in STRINGS:
        if data.add_space_prefix and text.startswith((" ", SPACE_MARK)):
            continue  # transformers' decode() takes the space away
        normal = hf.backend_tokenizer.normalizer.normalize_str(text) if data.nfc_ranges else text
        decoded = codec.decode_bytes(codec.encode(text, special=False), special=False)
        assert decoded == restored(normal, kind).encode(), text


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("qwen", "swallowing")])
def test_bytes_that_are_no_utf8_come_back(kind: str) -> None:
    data, codec = exported(kind)[1:]
    mark = SPACE_MARK.encode()
    for text in invalid_utf8():
        if data.add_space_prefix and text.startswith((b" ", mark)):
            continue
        expected = text.replace(mark, b" ") if kind in SENTENCEPIECE else text
        assert codec.decode_bytes(codec.encode(text, special=False), special=False) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_streams_show_whole_characters(kind: str) -> None:
    """Token after token, what can be shown is whole characters, and in the end all of it."""
    from sqllm._ffi import lib

    codec = exported(kind)[2]
    for text in STRINGS[::8]:
        ids = codec.encode(text, special=False)
        pending, shown = b"", b""
        for token in ids:
            pending += codec.token_bytes(token)
            n = lib.sq_utf8_complete(pending, len(pending))
            pending[:n].decode()  # raises where a character is cut
            shown, pending = shown + pending[:n], pending[n:]
        assert pending == b""
        assert shown.endswith(codec.decode_bytes(ids, special=False))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@example(text="")
def test_any_text(kind: str, text: str) -> None:
    hf, data, codec = exported(kind)
    compare(hf, data, codec, [text, f"a{text}<tool> {text}"])


def write_ranks(path: Path, ranks: dict[bytes, int]) -> None:
    path.write_bytes(b"\n".join(b"%s %d" % (base64.b64encode(token), rank) for token, rank in ranks.items()))


# ---- folders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SENTENCEPIECE_FILES)
def test_sentencepiece_model_alone(kind: str, tmp_path: Path) -> None:
    """tokenizer.model without tokenizer.json: transformers' tokens, and SentencePiece's own."""
    from sentencepiece import SentencePieceProcessor

    hf = load_tokenizer(sentencepiece_folder(tmp_path, kind))
    data = export_tokenizer(hf, len(hf))
    assert data.add_bos
    assert data.add_space_prefix == (kind != "gemma")
    own = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    with Codec(data.write) as codec:
        assert compare(hf, data, codec, STRINGS) > 10_000
        for text in STRINGS:
            special = any(token in text for token in hf.get_added_vocab() if token.strip())
            if not special and not (data.prefix_if_missing and text.startswith((" ", SPACE_MARK))):
                assert codec.encode(text) == own.encode(text), text


def test_opt_begins_with_its_end_token(tmp_path: Path) -> None:
    hf = load_tokenizer(opt_folder(tmp_path))
    data = export_tokenizer(hf, len(hf))
    assert (data.bos, data.eos, data.add_bos) == (2, 2, True)
    with Codec(data.write) as codec:
        assert compare(hf, data, codec, STRINGS) > 10_000
        assert codec.encode("a", bos=True)[0] == 2


def test_an_end_token_behind_texts_is_left_out(tmp_path: Path) -> None:
    """It would end what is to go on."""
    hf = load_tokenizer(opt_folder(tmp_path))
    hf.add_eos_token = True
    assert hf("a").input_ids[-1] == 2
    data = export_tokenizer(hf, len(hf))
    with Codec(data.write) as codec:
        assert compare(hf, data, codec, [*STRINGS[:200], "a</s>", ""]) > 1000
        assert codec.encode("a", bos=True)[-1] != 2


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.skipif(
    not GPT2.is_dir(), reason="no GPT-2 vocabulary beside this checkout"))])  # fmt: skip
def test_xgen(real: bool, tmp_path: Path) -> None:
    """The tokens of XGen's own code, which runs tiktoken; its code in the folder is not run."""
    (tmp_path / "tokenization_xgen.py").write_text("raise SystemExit('executed')")
    auto_map = {"AutoTokenizer": ["tokenization_xgen.XgenTokenizer", None]}
    write_folder(tmp_path, "llama", {"tokenizer_class": "XgenTokenizer", "auto_map": auto_map})
    with pytest.raises(ConvertError, match="never executed here; put GPT-2's"):
        load_tokenizer(tmp_path)
    if real:
        for name in ("vocab.json", "merges.txt"):
            (tmp_path / name).symlink_to(GPT2 / name)
        spelling = {character: byte for byte, character in bytes_to_unicode().items()}
        names = json.loads((GPT2 / "vocab.json").read_text())
        ranks = {bytes(spelling[c] for c in name): rank for name, rank in names.items() if rank < 50256}
    else:
        ranks = gpt2_ranks()
        write_ranks(tmp_path / "r50k_base.tiktoken", ranks)
    hf = load_tokenizer(tmp_path)
    data = export_tokenizer(hf, 51200)
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    special = xgen_special_tokens()
    assert (special["<|endoftext|>"], special["<sep>"], special["<mask_1>"]) == (50256, 50317, 51199)
    own = tiktoken.Encoding(
        "xgen", pat_str=pattern, mergeable_ranks=xgen_ranks(ranks), special_tokens=special
    )
    runs = [f"a{' ' * n}x{chr(9) * (n // 3)}y\n{' ' * (n // 2)}" for n in range(80)]
    with Codec(data.write) as codec:
        for text in (*STRINGS, *runs, "a<mask_12><|endoftext|> <fim_pad>"):
            assert codec.encode(text) == own.encode(text, allowed_special="all"), text
        compare(hf, data, codec, STRINGS[:200])


def test_tiktoken_model_alone(tmp_path: Path) -> None:
    """tokenizer.model that is a tiktoken vocabulary, as Llama 3's was published first."""
    write_ranks(tmp_path / "tokenizer.model", gpt2_ranks())
    write_folder(tmp_path, "llama", {"tokenizer_class": "PreTrainedTokenizerFast"})
    hf = load_tokenizer(tmp_path)
    data = export_tokenizer(hf, len(hf))
    assert data.ignore_merges
    with Codec(data.write) as codec:
        assert compare(hf, data, codec, STRINGS) > 10_000


def test_xgen_with_another_vocabulary(tmp_path: Path) -> None:
    write_folder(tmp_path, "llama", {"tokenizer_class": "XgenTokenizer"})
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(ConvertError, match=r"not GPT-2's, .* found 1 tokens"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text('{"\u4e00": 0}')
    with pytest.raises(ConvertError, match="vocabulary is damaged"):
        load_tokenizer(tmp_path)


@pytest.mark.skipif(not GPT2.is_dir(), reason="no GPT-2 vocabulary beside this checkout")
def test_gpt2() -> None:
    hf = load_tokenizer(GPT2)
    data = export_tokenizer(hf, 50257)
    with Codec(data.write) as codec:
        assert compare(hf, data, codec, STRINGS) > 10_000
