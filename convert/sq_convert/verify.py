"""The C tokenizer against transformers, on text made to break tokenizers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .codec import Codec
from .errors import ConvertError
from .tokenizer import TokenizerData, special_tokens_around

NASTY_LINES = (
    "Hello, world! The quick brown fox jumps over the lazy dog.",
    "",
    " ",
    "  two spaces first,   three inside, two last  ",
    "\ttab\t\ttabs \t mixed\t ",
    "a\u00a0no-break\u2003em\u3000ideographic\u180eMongolian\u200bzero width\u0085next line\u2028line",
    "I'm you're he's we've they'll I'd can't; I'M YOU'RE HE'S; it\u2019s 'sss 'tis ſs'ſ",
    "1 12 123 1234 12345 1234567890 3.14159 -1e-10 \u0661\u0662\u0663 ½Ⅷ² x1y22z333 a  1   22    333",
    "café naïve Ångström straße Łódź Αθήνα Москва",
    "e\u0301 combining, a\u0308o\u0308, Z\u0351\u036b\u0343\u036aalgo, สว\u0e31สด\u0e35, नमस\u094dत\u0947",
    "你好，世界！ 東京は日本の首都です。 안녕하세요 𠀀𪛖",
    "\u0645\u0631\u062d\u0628\u0627 \u0644\u0639\u0627\u0644\u0645 \u05e9\u05dc\u05d5\u05dd \u200fRTL\u200e",
    "😀🚀 👨\u200d👩\u200d👧\u200d👦 👍\U0001f3fd 🇩🇪 ❤\ufe0f 🏴\u200d☠\ufe0f🫠",
    "control \x00\x01\x07\x08\x0b\x0c\x1b[0m\x7f \u0080\u009f \ufeff \ufffd \ufffe \U0010ffff",
    "def f(x):\n    if x > 0:\n        return x ** 2  # square\n\treturn -1\r\n\r\n\n\n",
    "<div class=\"a\">&amp;</div> {'k': [1, 2]} a->b !== c && d || ~e ^ f; /* x */ // y",
    "http://example.org/a?b=c&d=%20e#f user@example.org C:\\path\\file.txt __init__ snake_case camelCase",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa hahahahahaha -------------- ........",
    "                                                                 many spaces",
    "\n\n\n   \n \n\n  \t\n",
    "▁ ▁▁ the mark itself ĠĊ <0x41> <unk> [PAD0]",
)


def verify_tokenizer(hf: Any, data: TokenizerData) -> int:
    """Compares ids and decoded text of every line, of all together, and of special tokens within text.

    Returns the number of tokens compared. Raises ConvertError with the first difference.
    """
    with Codec(data.write) as codec:
        return compare(hf, data, codec, sample_texts(hf))


def sample_texts(hf: Any) -> list[str]:
    added = [str(token) for token in hf.get_added_vocab()]
    special = [f"{token}a {token} b {token}{token}\n{token}" for token in added[:500]]
    return [
        *NASTY_LINES,
        "\n".join(NASTY_LINES),
        *special,
        *(token[:-1] for token in added[:500] if token[:-1]),
    ]


def compare(hf: Any, data: TokenizerData, codec: Codec, texts: Iterable[str]) -> int:
    """As verify_tokenizer, for these texts."""
    n_tokens, n_behind = 0, len(special_tokens_around(hf)[1])
    for text in texts:
        ids = hf(text, add_special_tokens=True).input_ids
        expected = list(ids[: len(ids) - n_behind])
        found = codec.encode(text, bos=True)
        if found != expected:
            raise _difference(hf, codec, text)
        for special in (True, False):
            original = hf.decode(
                expected, skip_special_tokens=not special, clean_up_tokenization_spaces=False
            )
            decoded = codec.decode(expected, special=special)
            if decoded != original:
                raise ConvertError(
                    f"The C tokenizer decodes tokens {_some(expected)} to {_shown(decoded)}, transformers to "
                    f"{_shown(original)}. {_ADVICE}"
                )
        n_tokens += len(expected)
    return n_tokens


_ADVICE = (
    "The converted model would read text wrongly, so the conversion stops; this tokenizer is not supported."
)


def _difference(hf: Any, codec: Codec, text: str) -> ConvertError:
    """The difference in the shortest beginning of the text that shows one."""
    n_behind = len(special_tokens_around(hf)[1])

    def both(n: int) -> tuple[list[int], list[int]]:
        ids = hf(text[:n], add_special_tokens=True).input_ids
        return codec.encode(text[:n], bos=True), list(ids[: len(ids) - n_behind])

    low, high = 0, len(text)
    while low + 1 < high:
        middle = (low + high) // 2
        ours, theirs = both(middle)
        low, high = (middle, high) if ours == theirs else (low, middle)
    ours, theirs = both(high)
    if ours == theirs:  # the halves did not lead to one
        high = len(text)
        ours, theirs = both(high)
    at = n_common(ours, theirs)
    return ConvertError(
        f"The C tokenizer and transformers differ in {_shown(text[:high])} from token {at} on: "
        f"{_some(ours[at:])} against {_some(theirs[at:])}. {_ADVICE}"
    )


def n_common(left: Sequence[Any], right: Sequence[Any]) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(left), len(right)))


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else "…" + text[-79:])


def _some(ids: list[int]) -> str:
    return str(ids) if len(ids) <= 8 else str(ids[:8])[:-1] + ", …]"
