"""A Jinja chat template as a table of the texts between messages (docs/FORMAT.md, section 5).

The template is rendered on sample dialogues whose contents are recognisable, so that what stands between them
can be read off. The table counts where it reproduces, exactly, a set of dialogues with all kinds of contents;
the C runtime then needs no template engine. Templates that cannot be reduced are recorded with the reason.
"""

from __future__ import annotations

import datetime as real_datetime
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any
from unittest import mock

from gguf import GGUFValueType, GGUFWriter

from .codec import Codec
from .errors import ConvertError
from .tokenizer import TokenizerData
from .verify import n_common

Message = dict[str, str]

# Templates that print today's date get this one, so that a conversion can be repeated to the byte. It is the
# date that Llama 3.2's template falls back on.
DATE = real_datetime.datetime(2024, 7, 26)

# Contents that no template writes by itself; none is part of another.
SYSTEM, USERS, ANSWERS = "Qsystem", ("Quser1", "Quser2", "Quser3"), ("Qanswer1", "Qanswer2")
THINK_END = "</think>"

# What may be taken off the ends of a content: white space, or newlines alone.
TRIMS = ("none", "left", "right", "both", "left newlines", "right newlines", "both newlines")
_PAD = "\n \n"  # shows which


@dataclass(frozen=True)
class ChatTable:
    """Texts between messages; None where the template has no such place."""

    begin: str  # before a user's message that is the first
    user_assistant: str
    assistant_user: str
    user_end: str  # behind the last message, a user's
    user_generate: str  # the same, and the prompt for an answer
    begin_system: str | None = None
    system_user: str | None = None
    no_system: str | None = None  # why there is no place for a system message
    assistant_end: str | None = None  # behind the last message, an assistant's
    answer_after: str | None = None  # an assistant's content begins behind the last of these
    answer_trim: str = "none"
    system_trim: str = "none"
    first_user_trim: str = "none"  # of a user's content behind a system message
    user_trim: str = "none"
    assistant_trim: str = "none"
    no_empty: tuple[str, ...] = ()  # roles whose contents may not be empty
    empty_system_is_none: bool = False

    def render(self, messages: Sequence[Message], generate: bool) -> str:
        """The dialogue as the C runtime puts it together, as text."""
        if messages[0]["role"] == "system" and self.empty_system_is_none and not self._content(messages, 0):
            messages = messages[1:]
        text = self.begin if messages[0]["role"] == "user" else str(self.begin_system)
        for index, message in enumerate(messages):
            if index > 0:
                text += str(getattr(self, f"{messages[index - 1]['role']}_{message['role']}"))
            text += self._content(messages, index)
        last = messages[-1]["role"]
        return text + str(getattr(self, f"{last}_generate" if generate else f"{last}_end"))

    def _content(self, messages: Sequence[Message], index: int) -> str:
        role, content = messages[index]["role"], messages[index]["content"]
        if role == "assistant" and self.answer_after and self.answer_after in content:
            content = trim(content.split(self.answer_after)[-1], self.answer_trim)
        first_user = role == "user" and index == 1
        return trim(content, str(getattr(self, "first_user_trim" if first_user else f"{role}_trim")))

    def write(self, writer: GGUFWriter) -> None:
        for item in fields(self):
            key, value = f"squeezellm.chat.{item.name}", getattr(self, item.name)
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, str):
                writer.add_key_value(key, value, GGUFValueType.STRING)
            elif value:
                writer.add_key_value(key, list(value), GGUFValueType.ARRAY, GGUFValueType.STRING)


@dataclass(frozen=True)
class NoChat:
    """Why there is no table; empty where the model has no template at all."""

    reason: str = ""

    def write(self, writer: GGUFWriter) -> None:
        if self.reason:
            writer.add_string("squeezellm.chat.unsupported", self.reason)


class _IrreducibleError(Exception):
    """The message is the reason."""


def reduce_template(hf: Any) -> ChatTable | NoChat:
    """The table of a transformers tokenizer's chat template, checked in text; see verify_chat for tokens."""
    if not hf.chat_template:
        return NoChat()
    try:
        template = _Template(hf)
        table = _answers(template, _system(template, _turns(template)))
        table = _empty_contents(template, _trims(template, table))
        _check(template, table)
    except _IrreducibleError as refusal:
        return NoChat(str(refusal))
    return table


def verify_chat(hf: Any, data: TokenizerData, table: ChatTable | NoChat) -> ChatTable | NoChat:
    """The table if the C runtime makes the template's tokens of every sample dialogue, else why not."""
    if isinstance(table, NoChat):
        return table
    template = _Template(hf)

    def add_keys(writer: GGUFWriter) -> None:
        data.write(writer)
        table.write(writer)

    with Codec(add_keys) as codec:
        for messages, generate in sample_dialogues(table):
            text = template.render(messages, generate)
            expected = hf(text, add_special_tokens=False).input_ids
            try:
                found = codec.chat(messages, generate)
            except ConvertError as error:
                return NoChat(str(error))
            if found != list(expected):
                return NoChat(
                    f"the tokens of the dialogue {text[-60:]!r} are not those of the original tokenizer"
                )
    return table


def end_of_turn_ids(hf: Any, table: ChatTable | NoChat) -> list[int]:
    """The special token that directly follows an answer, if one does: generation has to stop at it."""
    if isinstance(table, NoChat):
        return []
    ids = hf(table.assistant_user.lstrip(), add_special_tokens=False).input_ids
    return list(ids[:1]) if ids and ids[0] in hf.added_tokens_decoder else []


def trim(text: str, how: str) -> str:
    """`how` is none, left, right or both, for white space; or one of the last three and " newlines"."""
    side, _, newlines = how.partition(" ")
    characters = "\n" if newlines else None
    text = text.lstrip(characters) if side in ("left", "both") else text
    return text.rstrip(characters) if side in ("right", "both") else text


# ---- rendering ----------------------------------------------------------------------------------


class _FixedDate(real_datetime.datetime):
    @classmethod
    def now(cls, tz: real_datetime.tzinfo | None = None) -> _FixedDate:
        return cls(DATE.year, DATE.month, DATE.day)


@contextmanager
def fixed_date() -> Iterator[None]:
    """Within, strftime_now in templates that transformers renders tells DATE."""
    with mock.patch("transformers.utils.chat_template_utils.datetime", _FixedDate):
        yield


class _Template:
    """Renders dialogues; a template that refuses one raises _IrreducibleError with what it says."""

    def __init__(self, hf: Any) -> None:
        self._hf = hf

    def render(self, messages: Sequence[Message], generate: bool = False) -> str:
        try:
            with fixed_date():
                text = self._hf.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=generate
                )
        except Exception as error:  # templates are programs: they may raise anything
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise _IrreducibleError(f"the template refuses a plain dialogue: {line}") from error
        return str(text)

    def gaps(
        self, messages: Sequence[Message], generate: bool = False, marks: Sequence[str] = ()
    ) -> list[str]:
        """The texts before, between and behind the contents, which must stand in order, each once.

        `marks` are what is looked for, where contents are more than that.
        """
        text = self.render(messages, generate)
        marks = marks or [message["content"] for message in messages]
        names = [
            f"the {message['role']}'s message {mark!r}" for message, mark in zip(messages, marks, strict=True)
        ]
        for name, mark in zip(names, marks, strict=True):
            if text.count(mark) != 1:
                raise _IrreducibleError(f"the template {'repeats' if mark in text else 'leaves out'} {name}")
        order = sorted(range(len(marks)), key=lambda index: text.index(marks[index]))
        for place, index in enumerate(order):
            if index != place:
                raise _IrreducibleError(f"the template places {names[place]} behind {names[index]}")
        result = []
        for mark in marks:
            before, text = text.split(mark)
            result.append(before)
        return [*result, text]


def _dialogue(*contents: str, system: str | None = None) -> list[Message]:
    roles = itertools.cycle(("user", "assistant"))
    turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


# ---- reading the table off ----------------------------------------------------------------------

_TALK = (USERS[0], ANSWERS[0], USERS[1], ANSWERS[1], USERS[2])


def _turns(template: _Template) -> ChatTable:
    begin, between, again, *rest, end = template.gaps(_dialogue(*_TALK))
    if rest != [between, again]:
        raise _IrreducibleError(
            "what the template writes between messages changes in the course of a dialogue"
        )
    *before, generate = template.gaps(_dialogue(*_TALK), generate=True)
    if before != [begin, between, again, between, again]:
        raise _IrreducibleError("asking for an answer changes what the template writes before it")
    return ChatTable(
        begin, between, again, end, generate, assistant_end=_assistant_end(template, begin, between)
    )


def _assistant_end(template: _Template, begin: str, between: str) -> str | None:
    """None where the template writes an answer that ends the dialogue in another way than earlier ones."""
    try:
        *before, end = template.gaps(_dialogue(USERS[0], ANSWERS[0]))
    except _IrreducibleError:
        return None
    return end if before == [begin, between] else None


def _system(template: _Template, table: ChatTable) -> ChatTable:
    try:
        before, behind, *rest = template.gaps(_dialogue(*_TALK, system=SYSTEM))
    except _IrreducibleError as refusal:
        return replace(table, no_system=str(refusal))
    if rest != [table.user_assistant, table.assistant_user] * 2 + [table.user_end]:
        return replace(table, no_system="a system message changes what the template writes behind it")
    return replace(table, begin_system=before, system_user=behind)


def _answers(template: _Template, table: ChatTable) -> ChatTable:
    """Whether the thinking before an earlier answer is left out."""
    thought = f"<think>\nQthought\n{THINK_END}{_PAD}"
    messages = _dialogue(USERS[0], thought + ANSWERS[0], USERS[1])
    if "Qthought" in template.render(messages):
        return table
    gap = template.gaps(messages, marks=(USERS[0], ANSWERS[0], USERS[1]))[1]
    return replace(
        table, answer_after=THINK_END, answer_trim=_trim_name(gap.removeprefix(table.user_assistant))
    )


def _trims(template: _Template, table: ChatTable) -> ChatTable:
    talk = _dialogue(*_TALK)
    table = replace(table, user_trim=_trim_of(template, talk, 2), assistant_trim=_trim_of(template, talk, 1))
    if table.begin_system is None:
        return replace(table, first_user_trim=table.user_trim)
    talk = _dialogue(*_TALK, system=SYSTEM)
    return replace(
        table, system_trim=_trim_of(template, talk, 0), first_user_trim=_trim_of(template, talk, 1)
    )


def _trim_of(template: _Template, messages: list[Message], index: int) -> str:
    """What the template takes off the ends of one message's content."""
    marks = [message["content"] for message in messages]
    padded = [dict(message) for message in messages]
    padded[index]["content"] = f"{_PAD}{marks[index]}{_PAD}"
    plain, found = template.gaps(messages), template.gaps(padded, marks=marks)
    return _trim_name(
        found[index].removeprefix(plain[index]), found[index + 1].removesuffix(plain[index + 1])
    )


def _trim_name(left: str, right: str = _PAD) -> str:
    """The way of trimming that leaves this of a _PAD on either side."""
    for how in TRIMS:
        if trim(f"{_PAD}|{_PAD}", how) == f"{left}|{right}":
            return how
    raise _IrreducibleError("the template changes the contents of messages")


def _empty_contents(template: _Template, table: ChatTable) -> ChatTable:
    """What becomes of messages without a content."""
    if table.begin_system is not None and not _agrees(template, table, _dialogue(*_TALK, system="")):
        table = replace(table, empty_system_is_none=True)
        if not _agrees(template, table, _dialogue(*_TALK, system="")):
            table = replace(table, empty_system_is_none=False, no_empty=("system",))
    for role, contents in (("user", ("", *_TALK[1:])), ("assistant", (_TALK[0], "", *_TALK[2:]))):
        systems = (None,) if table.begin_system is None else (None, SYSTEM)
        if not all(_agrees(template, table, _dialogue(*contents, system=system)) for system in systems):
            table = replace(table, no_empty=(*table.no_empty, role))
    return table


def _agrees(template: _Template, table: ChatTable, messages: list[Message]) -> bool:
    try:
        return template.render(messages) == table.render(messages, False)
    except _IrreducibleError:
        return False


# ---- checking -----------------------------------------------------------------------------------

_CONTENTS = (
    "Hello!",
    "  spaces around\t ",
    "\n\nlines\n\nbetween\n",
    "",
    "Gr\u00fc\u00dfe, \u4e16\u754c \U0001f469\u200d\U0001f680 \u0645\u0631\u062d\u0628\u0627",
    '{{ braces }} {% if x %} <b>&amp;</b> "quotes" \'n \\n backslashes',
    "\u00a0\u3000other white space\u2003\x0b\u2028",
    "3 + 4 = 7\n```python\nprint('x')\n```",
)


def sample_dialogues(table: ChatTable) -> Iterator[tuple[list[Message], bool]]:
    """Dialogues, and whether to ask for an answer: all that the table claims to reproduce."""
    systems: list[str | None] = [None] if table.begin_system is None else [None, *_CONTENTS]
    cycle = itertools.cycle(_CONTENTS[:7])  # seven and eight contents: every pair of neighbours occurs
    for system, n_messages, start in itertools.product(systems, range(1, 10), range(3)):
        for _ in range(start):
            next(cycle)
        contents = [next(cycle) for _ in range(n_messages)]
        if table.answer_after:
            contents[1::2] = [f"<think>\nso\n{table.answer_after}\n\n{text}" for text in contents[1::2]]
        messages = _dialogue(*contents, system=system)
        if any(not trim(m["content"], "both") and m["role"] in table.no_empty for m in messages):
            messages = [{**m, "content": m["content"] if m["content"].strip() else "x"} for m in messages]
        if n_messages % 2 == 1:
            yield messages, True
            yield messages, False
        elif table.assistant_end is not None:
            yield messages, False


def _check(template: _Template, table: ChatTable) -> None:
    for messages, generate in sample_dialogues(table):
        expected, found = template.render(messages, generate), table.render(messages, generate)
        if expected != found:
            raise _IrreducibleError(_first_difference(expected, found))


def _first_difference(expected: str, found: str) -> str:
    at = n_common(expected, found)
    around = slice(max(0, at - 20), at + 20)
    return (
        f"the template depends on more than the order of messages: it writes {expected[around]!r} where "
        f"other dialogues led to expect {found[around]!r}"
    )
