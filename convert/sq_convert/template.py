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
THINK_BEGIN, THINK_END = "<think>", "</think>"
THINK_WORD, NO_THINK_WORD = "/think", "/no_think"  # in a system message

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
    system_user_empty: str | None = None  # in its place, where the user's content is empty
    no_system: str | None = None  # why there is no place for a system message
    system_last: bool = False  # the system message stands before the last message, a user's
    assistant_end: str | None = None  # behind the last message, an assistant's
    answer_after: str | None = None  # an assistant's content begins behind the last of these
    answer_trim: str = "none"
    thought_after: str | None = None  # and its thinking behind the last of these before the first of those
    thought_trim: str = "none"
    final_begin: str | None = None  # before the thinking of an answer that ends the dialogue
    final_middle: str | None = None  # between that thinking and the answer
    final_trim: str = "none"
    system_trim: str = "none"
    first_user_trim: str = "none"  # of a user's content behind a system message
    user_trim: str = "none"
    assistant_trim: str = "none"
    no_empty: tuple[str, ...] = ()  # roles whose contents may not be empty
    empty_system_is_none: bool = False
    think_word: str | None = None  # in a system message: the first table, and no_think's; both are left out
    no_think_word: str | None = None
    no_think: ChatTable | None = None  # what the template writes where it is told that the model not think

    def render(self, messages: Sequence[Message], generate: bool, thinking: bool = True) -> str:
        """The dialogue as the C runtime puts it together, as text."""
        table = self if thinking or self.no_think is None else self.no_think
        system = None
        if messages[0]["role"] == "system":
            table, system = self._system(messages[0]["content"], table)
            messages = messages[1:]
        return table._render(system, messages, generate)

    def _system(self, content: str, table: ChatTable) -> tuple[ChatTable, str | None]:
        """The table that a system message chooses, and what is left of it."""
        if self.think_word and self.no_think_word:
            rest = content.replace(self.no_think_word, "")
            if self.no_think and rest != content:
                table = self.no_think
            elif self.think_word in rest:
                table = self
            content = rest.replace(self.think_word, "")
        content = trim(content, table.system_trim)
        return table, None if table.empty_system_is_none and not content else content

    def _render(self, system: str | None, turns: Sequence[Message], generate: bool) -> str:
        text, previous = "", ""
        for index, message in enumerate(turns):
            role, content, is_last = message["role"], message["content"], index == len(turns) - 1
            behind_system = (
                system is not None and role == "user" and index == (len(turns) - 1 if self.system_last else 0)
            )
            if index == 0:
                text += str(self.begin_system if behind_system and not self.system_last else self.begin)
            else:
                text += str(getattr(self, f"{previous}_{role}"))
            if role == "assistant" and is_last and self.final_begin is not None:
                text += self._final(content)
            else:
                content = trim(
                    self._answer(content) if role == "assistant" else content,
                    self.first_user_trim if behind_system else str(getattr(self, f"{role}_trim")),
                )
                if behind_system:
                    bare = not content and self.system_user_empty is not None
                    text += f"{system}{self.system_user_empty if bare else self.system_user}"
                text += content
            previous = role
        return text + str(getattr(self, f"{previous}_generate" if generate else f"{previous}_end"))

    def _answer(self, content: str) -> str:
        if not self.answer_after or self.answer_after not in content:
            return content
        return trim(content.split(self.answer_after)[-1], self.answer_trim)

    def _final(self, content: str) -> str:
        thought = ""
        if self.answer_after and self.answer_after in content:
            thought = content.split(self.answer_after)[0].split(self.thought_after)[-1]
        answer = trim(self._answer(content), self.final_trim)
        return f"{self.final_begin}{trim(thought, self.thought_trim)}{self.final_middle}{answer}"

    def write(self, writer: GGUFWriter) -> None:
        for item in fields(self):
            _write(writer, f"squeezellm.chat.{item.name}", getattr(self, item.name))
        for item in fields(self) if self.no_think else ():
            value = getattr(self.no_think, item.name)
            if (
                value != getattr(self, item.name) or item.name == "user_generate"
            ):  # which shows that there is one
                _write(writer, f"squeezellm.chat.no_think.{item.name}", value)


def _write(writer: GGUFWriter, key: str, value: object) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, str):
        writer.add_key_value(key, value, GGUFValueType.STRING)
    elif isinstance(value, tuple) and value:
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
        table = _reduce(_Template(hf))
    except _IrreducibleError as refusal:
        return NoChat(str(refusal))
    return _with_switch(hf, table)


def _reduce(template: _Template) -> ChatTable:
    table = _answers(template, _system(template, _turns(template)))
    table = _empty_contents(template, _trims(template, table))
    for messages, generate, _ in sample_dialogues(table):
        _check(template, table, messages, generate)
    return table


def _with_switch(hf: Any, table: ChatTable) -> ChatTable:
    """With a second table, where the template knows the variable enable_thinking and that makes one."""
    template = _Template(hf, enable_thinking=False)
    try:
        if template.render(_dialogue(USERS[0]), True) == table.render(_dialogue(USERS[0]), True):
            return table
        other = _reduce(template)
        if any(
            (getattr(other, item.name) in (None, ())) != (getattr(table, item.name) in (None, ()))
            for item in fields(table)
        ):
            return table  # the second table in a file can only change what the first one has
        table = replace(table, no_think=other)
        words = replace(table, think_word=THINK_WORD, no_think_word=NO_THINK_WORD)
        if template.render(_dialogue(USERS[0], system=f"{SYSTEM} {THINK_WORD}"), True) == words.render(
            _dialogue(USERS[0], system=f"{SYSTEM} {THINK_WORD}"), True
        ):
            table = words
        for messages, generate, thinking in sample_dialogues(table):
            _check(_Template(hf) if thinking else template, table, messages, generate, thinking)
    except _IrreducibleError:
        return replace(table, no_think=None, think_word=None, no_think_word=None)
    return table


def verify_chat(hf: Any, data: TokenizerData, table: ChatTable | NoChat) -> ChatTable | NoChat:
    """The table if the C runtime makes the template's tokens of every sample dialogue, else why not."""
    if isinstance(table, NoChat):
        return table
    templates = {True: _Template(hf), False: _Template(hf, enable_thinking=False)}

    def add_keys(writer: GGUFWriter) -> None:
        data.write(writer)
        table.write(writer)

    with Codec(add_keys) as codec:
        for messages, generate, thinking in sample_dialogues(table):
            text = templates[thinking].render(messages, generate)
            expected = hf(text, add_special_tokens=False).input_ids
            try:
                found = codec.chat(messages, generate, thinking=thinking)
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

    def __init__(self, hf: Any, **variables: object) -> None:
        self._hf = hf
        self._variables = variables

    def render(self, messages: Sequence[Message], generate: bool = False) -> str:
        try:
            with fixed_date():
                text = self._hf.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=generate, **self._variables
                )
        except Exception as error:  # templates are programs: they may raise anything
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise _IrreducibleError(f"the template refuses a plain dialogue: {line}") from error
        return str(text)

    def gaps(
        self, messages: Sequence[Message], generate: bool = False, marks: Sequence[str] = ()
    ) -> list[str]:
        """The texts before, between and behind the contents, which must stand in order, each once.

        `marks` are what is looked for, where contents are more than that or stand in another order.
        """
        text = self.render(messages, generate)
        marks = marks or [message["content"] for message in messages]
        for mark in marks:
            if text.count(mark) != 1:
                verb = "repeats" if mark in text else "leaves out"
                raise _IrreducibleError(f"the template {verb} {_name_of(mark)}")
        order = sorted(marks, key=text.index)
        for mark, found in zip(marks, order, strict=True):
            if mark != found:
                raise _IrreducibleError(f"the template places {_name_of(mark)} behind {_name_of(found)}")
        result = []
        for mark in marks:
            before, text = text.split(mark)
            result.append(before)
        return [*result, text]


def _name_of(mark: str) -> str:
    roles = {SYSTEM: "system", **dict.fromkeys(USERS, "user"), **dict.fromkeys(ANSWERS, "assistant")}
    return f"the {roles[mark]}'s message {mark!r}" if mark in roles else f"the text {mark!r}"


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
        return _system_last(template, replace(table, no_system=str(refusal)))
    if rest != [table.user_assistant, table.assistant_user] * 2 + [table.user_end]:
        return replace(table, no_system="a system message changes what the template writes behind it")
    return replace(table, begin_system=before, system_user=behind)


def _system_last(template: _Template, table: ChatTable) -> ChatTable:
    """Whether the system message stands before the last user's content instead."""
    talk = _dialogue(*_TALK, system=SYSTEM)
    try:
        gaps = template.gaps(talk, marks=(*_TALK[:-1], SYSTEM, _TALK[-1]))
    except _IrreducibleError:
        return table
    between, again = table.user_assistant, table.assistant_user
    if [*gaps[:5], gaps[6]] != [table.begin, between, again, between, again, table.user_end]:
        return table
    return replace(table, no_system=None, system_last=True, system_user=gaps[5])


def _answers(template: _Template, table: ChatTable) -> ChatTable:
    """Whether the thinking before an earlier answer is left out, and written before a last one."""
    thought = f"{THINK_BEGIN}\nQthought\n{THINK_END}{_PAD}"
    messages = _dialogue(USERS[0], thought + ANSWERS[0], USERS[1])
    if "Qthought" in template.render(messages):
        return table
    gap = template.gaps(messages, marks=(USERS[0], ANSWERS[0], USERS[1]))[1]
    table = replace(
        table, answer_after=THINK_END, answer_trim=_trim_name(gap.removeprefix(table.user_assistant))
    )
    return table if table.assistant_end is not None else _final_answer(template, table)


def _final_answer(template: _Template, table: ChatTable) -> ChatTable:
    """How an answer that ends the dialogue is written with its thinking, which may be empty."""

    def gaps(content: str, *marks: str) -> list[str]:
        return template.gaps(_dialogue(USERS[0], content), marks=(USERS[0], *marks))

    thought, answer = "Qthought", ANSWERS[0]
    try:
        _, begin, middle, end = gaps(f"{THINK_BEGIN}{thought}{THINK_END}{answer}", thought, answer)
        _, left, right, _ = gaps(f"{THINK_BEGIN}{_PAD}{thought}{_PAD}{THINK_END}{answer}", thought, answer)
        _, before, behind = gaps(f"{_PAD}{answer}{_PAD}", answer)
        thought_trim = _trim_name(left.removeprefix(begin), right.removesuffix(middle))
        final_trim = _trim_name(before.removeprefix(begin + middle), behind.removesuffix(end))
    except _IrreducibleError:
        return table
    if not begin.startswith(table.user_assistant):
        return table
    return replace(
        table,
        assistant_end=end,
        thought_after=THINK_BEGIN,
        thought_trim=thought_trim,
        final_begin=begin.removeprefix(table.user_assistant),
        final_middle=middle,
        final_trim=final_trim,
    )


def _trims(template: _Template, table: ChatTable) -> ChatTable:
    talk = _dialogue(*_TALK)
    table = replace(table, user_trim=_trim_of(template, talk, 2), assistant_trim=_trim_of(template, talk, 1))
    if table.begin_system is None:  # system_last: that no content is trimmed then, checking shows
        return replace(table, first_user_trim="none" if table.system_last else table.user_trim)
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
    if table.system_user is not None and not _agrees(template, table, _dialogue(*_TALK, system="")):
        table = replace(table, empty_system_is_none=True)
        if not _agrees(template, table, _dialogue(*_TALK, system="")):
            table = replace(table, empty_system_is_none=False, no_empty=("system",))
    table = _empty_behind_system(template, table)
    for role, contents in (("user", ("", *_TALK[1:])), ("assistant", (_TALK[0], "", *_TALK[2:]))):
        systems = (None,) if table.system_user is None else (None, SYSTEM)
        if not all(_agrees(template, table, _dialogue(*contents, system=system)) for system in systems):
            table = replace(table, no_empty=(*table.no_empty, role))
    return table


def _empty_behind_system(template: _Template, table: ChatTable) -> ChatTable:
    """What stands behind a system message where the user says nothing, and the template trims both as one."""
    talk = _dialogue("", *_TALK[1:], system=SYSTEM)
    if table.begin_system is None or _agrees(template, table, talk):
        return table
    try:
        gap = template.gaps(talk, marks=(SYSTEM, *_TALK[1:]))[1]
    except _IrreducibleError:
        return table
    return replace(table, system_user_empty=gap.removesuffix(table.user_assistant))


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


# What switches thinking on and off in system messages, beside other text and alone.
_SWITCHES = ("Be brief. /no_think", "/think", " /no_think\n", "a /think b /no_think c")


def sample_dialogues(table: ChatTable) -> Iterator[tuple[list[Message], bool, bool]]:
    """Dialogues, whether to ask for an answer, and whether with thinking: all that the table claims."""
    for thinking in (True,) if table.no_think is None else (True, False):
        for messages in _sample_messages(table):
            if messages[-1]["role"] == "user":
                yield messages, True, thinking
                yield messages, False, thinking
            elif table.assistant_end is not None:
                yield messages, False, thinking


def _sample_messages(table: ChatTable) -> Iterator[list[Message]]:
    systems: list[str | None] = [None] if table.system_user is None else [None, *_CONTENTS]
    systems += _SWITCHES if table.think_word else ()
    cycle = itertools.cycle(_CONTENTS[:7])  # seven and eight contents: every pair of neighbours occurs
    for system, n_messages, start in itertools.product(systems, range(1, 13), range(3)):
        for _ in range(start):
            next(cycle)
        contents = [next(cycle) for _ in range(n_messages)]
        if table.answer_after:
            contents[1::2] = [
                f"{THINK_BEGIN}\nso\n{table.answer_after}\n\n{text}" if (index + start) % 3 else text
                for index, text in enumerate(contents[1::2])
            ]
        messages = _dialogue(*contents, system=system)
        yield [
            {**m, "content": "x"} if m["role"] in table.no_empty and not m["content"].strip() else m
            for m in messages
        ]


def _check(
    template: _Template, table: ChatTable, messages: list[Message], generate: bool, thinking: bool = True
) -> None:
    expected, found = template.render(messages, generate), table.render(messages, generate, thinking)
    if expected != found:
        raise _IrreducibleError(_first_difference(expected, found))


def _first_difference(expected: str, found: str) -> str:
    at = n_common(expected, found)
    around = slice(max(0, at - 20), at + 20)
    return (
        f"the template depends on more than the order of messages: it writes {expected[around]!r} where "
        f"other dialogues led to expect {found[around]!r}"
    )
