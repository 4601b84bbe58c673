"""Tokenizers of every supported kind, exported and compared with transformers through the C library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, GGUFWriter, TokenType
from sq_convert.codec import Codec
from sq_convert.errors import ConvertError
from sq_convert.pattern import GPT2, literal, to_pcre2
from sq_convert.tokenizer import TokenizerData, export_tokenizer, repair_gguf_tokenizer
from sq_convert.verify import compare, verify_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers_for_tests import BYTE_LEVEL, LLAMA3, TEXT, byte_level, sentencepiece, with_bos, wrap
from transformers import AutoTokenizer

SENTENCEPIECE = ("v5", "legacy", "first", "never", "split")


@pytest.mark.parametrize("kind", BYTE_LEVEL)
def test_byte_level(kind: str) -> None:
    hf = byte_level(kind)
    data = export_tokenizer(hf, len(hf) + 3)
    assert data.model == "gpt2"
    assert data.types[-3:] == [TokenType.UNUSED] * 3
    assert data.types[hf.convert_tokens_to_ids("<tool>")] == TokenType.USER_DEFINED
    assert verify_tokenizer(hf, data) > 1000
    with Codec(data.write) as codec:
        assert compare(hf, data, codec, [TEXT, *TEXT.split("\n")]) > 50


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_sentencepiece(kind: str) -> None:
    hf = sentencepiece(kind)
    data = export_tokenizer(hf, len(hf))
    assert data.model == "llama"
    assert data.types.count(TokenType.BYTE) == 256
    assert data.add_space_prefix == (kind != "never")
    assert verify_tokenizer(hf, data) > 1000


def test_scores_alone_give_the_same_tokens() -> None:
    """Without merges the C library goes by scores, as SentencePiece does."""
    hf = sentencepiece("v5")
    data = replace(export_tokenizer(hf, len(hf)), merges=[])
    assert verify_tokenizer(hf, data) > 1000


def test_beginning_of_sequence() -> None:
    hf = with_bos(byte_level())
    data = export_tokenizer(hf, len(hf))
    assert data.add_bos
    verify_tokenizer(hf, data)
    with Codec(data.write) as codec:
        assert codec.encode("a", bos=True)[0] == hf.bos_token_id
        assert codec.encode("a", bos=False) == codec.encode("a", bos=True)[1:]


def test_whole_tokens_first() -> None:
    """ignore_merges: a piece that is a token is taken, though the merges would not lead to it."""
    hf = byte_level("llama3")
    backend = hf.backend_tokenizer
    vocab = {**backend.get_vocab(with_added_tokens=False), "Ġzebra": len(hf)}
    merges = export_tokenizer(hf, len(hf)).merges
    tokenizer = Tokenizer(
        models.BPE(vocab, [(m.split(" ")[0], m.split(" ")[1]) for m in merges], ignore_merges=True)
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = backend.pre_tokenizer, backend.decoder
    whole = wrap(tokenizer)
    data = export_tokenizer(whole, len(hf) + 1)
    assert data.ignore_merges
    verify_tokenizer(whole, data)
    with Codec(data.write) as codec:
        assert codec.encode(" zebra") == [len(hf)]
    with (
        pytest.raises(ConvertError, match="differ"),
        Codec(replace(data, ignore_merges=False).write) as codec,
    ):
        compare(whole, data, codec, ["a zebra"])


def test_nfc_by_the_originals_unicode() -> None:
    """A mark that the tokenizers library does not know yet stays where it is."""
    hf = byte_level("qwen")
    data = export_tokenizer(hf, len(hf))
    assert len(data.nfc_ranges) > 1000
    with Codec(data.write) as codec:
        assert (
            codec.decode(codec.encode("Cafe\u0301 \u1112\u1161\u11ab"), special=False) == "Caf\u00e9 \ud55c"
        )
        assert (
            compare(hf, data, codec, ["a\u0301\u0f39\u0301", "o\u0302\u1ac4\u0323", "\u0958\u0344\u2126"])
            > 10
        )
        with pytest.raises(ConvertError, match="differ in"):
            compare(hf, replace(data, nfc_ranges=()), Codec(replace(data, nfc_ranges=()).write), ["e\u0301"])


def test_control_tokens_in_plain_text_have_no_power() -> None:
    hf = byte_level()
    data = export_tokenizer(hf, len(hf))
    with Codec(data.write) as codec:
        assert hf.eos_token_id in codec.encode("a<|im_end|>")
        plain = codec.encode("a<|im_end|><tool>", special=False)
        assert hf.eos_token_id not in plain
        assert hf.convert_tokens_to_ids("<tool>") in plain  # not special: always a token
        assert codec.decode(plain, special=False) == "a<|im_end|><tool>"


def test_keys_are_read_by_other_tools(tmp_path: Path) -> None:
    hf = sentencepiece()
    data = export_tokenizer(hf, len(hf), eos_ids=[5])
    writer = GGUFWriter(tmp_path / "t.gguf", "llama")
    data.write(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    reader = GGUFReader(tmp_path / "t.gguf")

    def read(key: str) -> Any:
        field = reader.get_field(key)
        assert field is not None, key
        return field.contents()

    assert read("tokenizer.ggml.tokens")[:3] == ["<unk>", "<s>", "</s>"]
    assert len(read("tokenizer.ggml.scores")) == len(hf)
    assert read("tokenizer.ggml.bos_token_id") == 1
    assert read("squeezellm.stop_token_ids") == [2, 5]


# ---- verification notices --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda data: replace(data, patterns=[]),
        lambda data: replace(data, patterns=data.patterns[::-1]),
        lambda data: replace(data, merges=[data.merges[1], data.merges[0], *data.merges[2:]][::-1]),
        lambda data: replace(data, types=[1] * len(data.types)),
        lambda data: replace(
            data, tokens=[*data.tokens[:40], data.tokens[41], data.tokens[40], *data.tokens[42:]]
        ),
    ],
    ids=["no patterns", "order of patterns", "order of merges", "no special tokens", "two tokens swapped"],
)
def test_a_difference_stops_the_conversion(change: Callable[[Any], Any]) -> None:
    hf = byte_level("digits")
    with pytest.raises(ConvertError, match=r"differ in .* against .* the conversion stops"):
        verify_tokenizer(hf, change(export_tokenizer(hf, len(hf))))


@pytest.mark.parametrize("key", ["add_space_prefix", "prefix_at_start", "prefix_if_missing", "add_bos"])
def test_a_wrong_flag_stops_the_conversion(key: str) -> None:
    hf = sentencepiece("v5")
    data = export_tokenizer(hf, len(hf))
    with pytest.raises(ConvertError, match=r"differ in .* against"):
        verify_tokenizer(hf, TokenizerData(**{**vars(data), key: not getattr(data, key)}))


def test_a_difference_in_decoding_stops_the_conversion() -> None:
    hf = byte_level()
    hf.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 2, 0)])
    with pytest.raises(ConvertError, match="decodes tokens"):
        verify_tokenizer(hf, export_tokenizer(hf, len(hf)))


# ---- what is refused ---------------------------------------------------------------------------------


def _lower_case(hf: Any) -> None:
    hf.backend_tokenizer.normalizer = normalizers.Lowercase()


def _prefix_space(hf: Any) -> None:
    hf.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def _single_word(hf: Any) -> None:
    hf.backend_tokenizer.add_special_tokens([AddedToken("<mask>", single_word=True)])


def _merged_with_next(hf: Any) -> None:
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(" ", "merged_with_next")
    hf.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])


def _doubles_bos(hf: Any) -> None:
    hf.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> <|im_start|> $A", special_tokens=[("<|im_start|>", hf.bos_token_id)]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_lower_case, "normalizer has the step .*Lowercase"),
        (_prefix_space, "pre-tokenizer has the step .*ByteLevel"),
        (_single_word, "'<mask>' has the property 'single_word'"),
        (_merged_with_next, "MergedWithNext"),
        (_doubles_bos, "only a beginning-of-sequence token put first"),
    ],
)
def test_refused(change: Callable[[Any], None], message: str) -> None:
    hf = byte_level()
    change(hf)
    with pytest.raises(ConvertError, match=message):
        export_tokenizer(hf, len(hf) + 1)


def test_other_models_are_refused() -> None:
    hf = wrap(Tokenizer(models.Unigram([("a", 0.0), ("b", -1.0)], unk_id=0)))
    with pytest.raises(ConvertError, match="Unigram model; only BPE"):
        export_tokenizer(hf, 2)


def test_more_tokens_than_rows_are_refused() -> None:
    hf = byte_level()
    with pytest.raises(ConvertError, match="do not belong together"):
        export_tokenizer(hf, len(hf) - 1)


# ---- patterns ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern", [GPT2, LLAMA3, r"[\r\n]", r"\s+$", "[一-龥]+", r"\.\+\[", r"(?<=a)b(?!c)"]
)
def test_patterns_of_published_tokenizers_are_kept(pattern: str) -> None:
    space = r"\t-\r\x{85}\p{Z}"
    if "\\s" not in pattern:
        assert to_pcre2(pattern) == pattern
    assert "\\s" not in to_pcre2(pattern)
    assert (space in to_pcre2(pattern)) == ("\\s" in pattern)


def test_code_points_are_respelled() -> None:
    assert to_pcre2(r"\u00e9[\u4e00-\u9fff]\x41") == r"\x{00e9}[\x{4e00}-\x{9fff}]\x{41}"


@pytest.mark.parametrize(
    "pattern",
    [r"\w+", r"a\b", r"\h", r"[a[b]]", r"[a-z&&[^b]]", r"[^\S]", r"(?m:a)", r"(?<name>a)", r"a{1,3}+", r"\K",
     "[]a]", "[a", "a\\"],
)  # fmt: skip
def test_constructs_with_another_meaning_are_refused(pattern: str) -> None:
    with pytest.raises(ConvertError, match="not known to mean the same"):
        to_pcre2(pattern)


def test_literal() -> None:
    assert literal("a.b|c é。") == r"a\.b\|c é。"


# ---- a real tokenizer out of a GGUF file ----------------------------------------------------------------


def test_smollm2(smollm2_source: Path) -> None:
    hf = AutoTokenizer.from_pretrained(smollm2_source.parent, gguf_file=smollm2_source.name)
    repair_gguf_tokenizer(hf, smollm2_source)
    data = export_tokenizer(hf, 49152)
    assert data.patterns[0] == r"\p{N}"
    assert len(data.patterns) == 2
    assert data.unknown is None
    assert data.stop_ids == [2]
    verify_tokenizer(hf, data)
    with Codec(data.write) as codec:
        assert codec.decode(codec.encode("12  34"), special=False) == "12  34"
        assert len(codec.encode("1234")) == 4


def gguf_with_pre(path: Path, pre: str) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_qwen_out_of_a_gguf_file_is_normalized(tmp_path: Path) -> None:
    """As the original is; GGUF has no key for it."""
    hf = byte_level()
    repair_gguf_tokenizer(hf, gguf_with_pre(tmp_path / "t.gguf", "qwen2"))
    assert export_tokenizer(hf, len(hf)).nfc_ranges


def test_unknown_pre_tokenizer_is_refused(tmp_path: Path) -> None:
    path = gguf_with_pre(tmp_path / "t.gguf", "tomorrow's")
    with pytest.raises(ConvertError, match=r"tokenizer\.ggml\.pre is \"tomorrow's\""):
        repair_gguf_tokenizer(byte_level(), path)
