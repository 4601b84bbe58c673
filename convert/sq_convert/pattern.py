"""Pre-tokenizer patterns: from Oniguruma's dialect, which Hugging Face's tokenizers run, to PCRE2's.

The two agree on most of what such patterns use. Where they do not, the pattern is rewritten (white space:
PCRE2 counts U+180E, Unicode does not), and what is not known to agree is refused.
"""

from __future__ import annotations

import re

from .errors import ConvertError

SPACE = r"\t-\r\x{85}\p{Z}"  # the members of Unicode's White_Space
_SAME_ESCAPES = "dDrntfae"
_GROUPS = ("(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>")
_PROPERTY = re.compile(r"\\[pP]\{\^?[A-Za-z_ ]+\}|\\[pP][A-Z]")
_CODE_POINT = re.compile(r"\\x\{([0-9A-Fa-f]{1,6})\}|\\x([0-9A-Fa-f]{2})|\\u([0-9A-Fa-f]{4})")

# What GPT-2 splits by; ByteLevel(use_regex=True) has it built in.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def to_pcre2(pattern: str) -> str:
    """The same pattern for PCRE2 with UTF, UCP and MULTILINE.

    Raises ConvertError, naming the construct, where the two dialects may not mean the same.
    """
    result = []
    at = 0
    while at < len(pattern):
        if pattern[at] == "[":
            text, at = _class(pattern, at)
        elif pattern[at] == "\\":
            text, at = _escape(pattern, at, in_class=False)
        elif pattern.startswith("(?", at):
            text, at = _group(pattern, at)
        elif pattern.startswith("}+", at):
            raise _refusal(pattern, "}+")
        else:
            text, at = pattern[at], at + 1
        result.append(text)
    return "".join(result)


def literal(text: str) -> str:
    """A pattern that matches exactly this text."""
    return re.sub(r"([^\w\s])", lambda match: "\\" + match[0] if match[0].isascii() else match[0], text)


def _class(pattern: str, at: int) -> tuple[str, int]:
    """A bracket expression; nested ones and && mean something else to PCRE2."""
    result = "["
    at += 1
    if pattern.startswith("^", at):
        result, at = "[^", at + 1
    if pattern.startswith("]", at):
        raise _refusal(pattern, "[]")
    while at < len(pattern) and pattern[at] != "]":
        if pattern[at] == "[" or pattern.startswith("&&", at):
            raise _refusal(pattern, pattern[at : at + 2] + " in a bracket expression")
        if pattern[at] == "\\":
            text, at = _escape(pattern, at, in_class=True)
        else:
            text, at = pattern[at], at + 1
        result += text
    if at == len(pattern):
        raise _refusal(pattern, "[ without ]")
    return result + "]", at + 1


def _escape(pattern: str, at: int, in_class: bool) -> tuple[str, int]:
    escaped = pattern[at + 1 : at + 2]
    if escaped == "s":
        return (SPACE if in_class else f"[{SPACE}]"), at + 2
    if escaped == "S" and not in_class:
        return f"[^{SPACE}]", at + 2
    if found := _PROPERTY.match(pattern, at):
        return found[0], found.end()
    if found := _CODE_POINT.match(pattern, at):
        return "\\x{" + (found[1] or found[2] or found[3]) + "}", found.end()
    if escaped and (escaped in _SAME_ESCAPES or (escaped.isascii() and not escaped.isalnum())):
        return pattern[at : at + 2], at + 2
    raise _refusal(pattern, f"\\{escaped}" + (" in a bracket expression" if in_class else ""))


def _group(pattern: str, at: int) -> tuple[str, int]:
    for group in _GROUPS:
        if pattern.startswith(group, at):
            return group, at + len(group)
    raise _refusal(pattern, pattern[at : at + 4])


def _refusal(pattern: str, construct: str) -> ConvertError:
    return ConvertError(
        f"The tokenizer splits text by the pattern {pattern!r}; {construct!r} in it is not known to mean the "
        "same to the library that runs it here (PCRE2), so this tokenizer is not supported."
    )
