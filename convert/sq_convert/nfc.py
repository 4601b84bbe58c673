"""Which characters take part in Unicode's normalization form NFC, as the tokenizers library knows it."""

from __future__ import annotations

import functools

from tokenizers import normalizers

# No character of the planes behind takes part in any version of Unicode so far.
_END = 0x40000
_LOWEST, _HIGHEST = "\u0334", "\u0345"  # marks of the first and the last class: others pass them by


@functools.cache
def nfc_ranges() -> tuple[int, ...]:
    """First and last characters of ranges, ascending: what decomposes, composes or changes places.

    The library's version of Unicode is older than others'. What it does not know yet it leaves alone, and the
    runtime has to do the same to get the same tokens.
    """
    characters = [chr(point) for point in range(_END) if chr(point) != "\n" and not 0xD800 <= point < 0xE000]
    nfc, nfd = normalizers.NFC(), normalizers.NFD()
    decomposed = _each(nfd, characters)
    columns = zip(
        characters,
        decomposed,
        _each(nfc, characters),
        _each(nfd, [character + _LOWEST for character in characters]),
        _each(nfd, [_HIGHEST + character for character in characters]),
        strict=True,
    )
    found: set[str] = set()
    for character, parts, composed, before, behind in columns:
        moves = before != parts + _LOWEST or behind != _HIGHEST + parts
        if moves or parts != character or composed != character:
            found.update(character, parts)
    points = sorted(map(ord, found))
    firsts = [point for point in points if chr(point - 1) not in found]
    lasts = [point for point in points if chr(point + 1) not in found]
    return tuple(point for pair in zip(firsts, lasts, strict=True) for point in pair)


def _each(form: normalizers.Normalizer, texts: list[str]) -> list[str]:
    return form.normalize_str("\n".join(texts)).split("\n")
