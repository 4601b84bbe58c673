"""Text made to break tokenizers: thousands of strings, the same ones every time."""

from __future__ import annotations

import random
import sys
import unicodedata
from collections.abc import Callable

SPACES = " \t\n\r\x0b\x0c\x85\xa0\u1680\u2000\u2003\u2009\u2028\u2029\u202f\u205f\u3000\u200b\ufeff"
EMOJI = (
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "\U0001f44d\U0001f3fd",
    "\U0001f1e9\U0001f1ea", "\u2764\ufe0f\u200d\U0001f525", "1\ufe0f\u20e3",
    "\U0001f3f4\U000e0067\U000e0062\U000e007f", "\U0001fae0", "\U0001f600", "\u263a",
    "\U0001f9d1\U0001f3ff\u200d\U0001f680",
)  # fmt: skip
WORDS = (
    "the", "Hello", "WORLD", "don't", "I'LL", "they\u2019re", "'S", "na\xefve", "\u017ftra\xdfe", "\u01c5",
    "\u041c\u043e\u0441\u043a\u0432\u0430", "\u0399\u03a3\u03a3\u03a3",
    "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd",
    "\u0627\u0644\u0639\u064e\u0631\u064e\u0628\u0650\u064a\u064e\u0651\u0629", "\u202bRTL\u202c",
    "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u4f60\u597d",
    "\u6771\u4eac\u306f", "\u30ab\u3099", "\uc548\ub155", "\u1112\u1161\u11ab", "12345", "3.14",
    "\u0661\u0662\u0663", "\xbd", "\u2167", "x\xb2", "snake_case", "camelCase", "\u2581", "\u2581\u2581",
    "\u0120",
)  # fmt: skip
CODE = (
    "def f(x):\n    return x ** 2  # square\n", "if (a && b) {\r\n\t\tc += 0x1F;\r\n}\n",
    "SELECT * FROM t WHERE a<>'b';", "#include <stdio.h>\n", '{"key": [1, 2, {"a": null}]}',
    "<p class='x'>&nbsp;</p>", "$x = $y->z[0]??'';", "\\frac{a}{b}",
    "for i in range(10):\n        pass\n\n\n", "a=b;c=d//e\n", "std::vector<std::pair<int,int>>v;",
    "\u03bb x \u2192 x \u2218 f",
)  # fmt: skip
URLS = (
    "https://example.org/a/b.html?x=1&y=%20#top", "ftp://user:pw@host:21/~x", "mailto:a.b+c@example.org",
    "C:\\dir\\f.txt", "/usr/lib/libx.so.1", "www.\u4f8b\u3048.jp", "data:text/plain;base64,SGVsbG8=",
)  # fmt: skip
MARKUP = ("<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<tool>", "<0x41>", "<|im_", "[INST]", "\n\n")


def _assigned(start: int, end: int) -> list[str]:
    """Characters of a range that this Python's Unicode knows."""
    return [chr(point) for point in range(start, end) if unicodedata.category(chr(point)) not in ("Cn", "Cs")]


def hard_strings(n: int = 2400, seed: int = 1) -> list[str]:
    """`n` strings over every plane of Unicode and of every kind that tokenizers treat apart."""
    dice = random.Random(seed)
    planes = [_assigned(plane << 16, (plane + 1) << 16) for plane in (0, 1, 2, 3, 14)]
    blocks = [block for start in range(0, 0x20000, 128) if (block := _assigned(start, start + 128))]
    marks = [char for char in planes[0] if unicodedata.combining(char)]
    composed = [char for char in planes[0] if unicodedata.decomposition(char)]

    def anywhere() -> str:
        """From any plane, also those that hold nothing but private use or nothing at all."""
        point = dice.randrange(sys.maxunicode + 1)
        return (
            dice.choice(dice.choice(planes))
            if 0xD800 <= point < 0xE000 or dice.random() < 0.7
            else chr(point)
        )

    def mixed(*parts: str) -> str:
        return "".join(
            dice.choice(parts) + dice.choice(("", " ", " ", "\n", "  ")) for _ in range(dice.randint(1, 6))
        )

    def accents() -> str:
        base = dice.choice("aeouAEns\u03b1\u0438\u1100\uac00\u0915") + "".join(
            dice.choices(marks, k=dice.randint(1, 4))
        )
        return base + unicodedata.normalize(dice.choice(("NFD", "NFKD", "NFC")), dice.choice(composed))

    kinds: list[Callable[[], str]] = [
        lambda: "".join(anywhere() for _ in range(dice.randint(1, 12))),
        lambda: "".join(dice.choices(dice.choice(blocks), k=dice.randint(1, 16))),
        lambda: "".join(accents() for _ in range(dice.randint(1, 5))),
        lambda: "".join(dice.choice(SPACES) * dice.choice((1, 1, 2, 3, 9, 40)) for _ in range(4)),
        lambda: "".join(chr(dice.choice((*range(32), *range(127, 160), 0xFFFD, 0xFFFE))) for _ in range(8)),
        lambda: mixed(*EMOJI),
        lambda: mixed(*WORDS),
        lambda: mixed(*CODE),
        lambda: mixed(*URLS),
        lambda: mixed(*MARKUP, *WORDS),
        lambda: mixed(*EMOJI, *WORDS, *CODE, *URLS, accents(), anywhere(), " " * dice.randint(1, 70)),
        lambda: "".join(dice.choices("0123456789,. \u0660\u0967\uff11\u2460", k=dice.randint(1, 24))),
    ]  # fmt: skip
    return [kinds[index % len(kinds)]() for index in range(n)]


def invalid_utf8(n: int = 300, seed: int = 1) -> list[bytes]:
    """Bytes that are no UTF-8: cut, overlong, surrogates, stray, amid text."""
    dice = random.Random(seed)
    pieces = [
        b"\xff",
        b"\x80",
        b"\xc3",
        b"\xc0\xaf",
        b"\xe2\x82",
        b"\xed\xa0\x80",
        b"\xf0\x9f\x98",
        b"\xf5\x80",
        b"\xf4\x90\x80\x80",
    ]
    texts = [text.encode() for text in (*WORDS, *EMOJI, " ", "\n")]
    return [
        b"".join(dice.choice(dice.choice((pieces, texts))) for _ in range(dice.randint(1, 8)))
        for _ in range(n)
    ]
