"""Dialogues to tokens: by the file's table of texts, or by the model's own Jinja template.

The converter reduces a chat template to a table where that reproduces it exactly; libsq applies it.
Where it does not, the template itself is rendered here, in Jinja's sandbox, because it comes from the
file and a file is not to be trusted.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn, cast

from . import tokenizer
from ._ffi import check, ffi, lib, text
from .error import Error, Status


def tokens(model: Any, messages: Sequence[Mapping[str, str]], thinking: bool = True) -> list[int]:
    """The tokens of a dialogue, with the prompt for the next answer behind it.

    Control tokens that stand in a message's content are plain text there. `thinking` False asks for an answer
    without thinking before it, where the model has a switch for that.
    """
    for message in messages:
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise TypeError(f"a message is {{'role': str, 'content': str}}, found {message!r}")
    error = ffi.new("sq_error *")
    if lib.sq_chat_check(model, error) == lib.SQ_OK:
        return _by_table(model, messages, thinking)
    template = lib.sq_model_meta(model, b"tokenizer.chat_template")
    if template == ffi.NULL:
        check(lib.sq_chat_check(model, error), error)
    return _by_template(model, text(template), messages, thinking)


def _by_table(model: Any, messages: Sequence[Mapping[str, str]], thinking: bool) -> list[int]:
    texts = [
        [ffi.new("char[]", message[key].encode()) for key in ("role", "content")] for message in messages
    ]
    array = ffi.new("sq_message[]", [{"role": role, "content": content} for role, content in texts])
    error = ffi.new("sq_error *")
    flags = lib.SQ_CHAT_GENERATE | (0 if thinking else lib.SQ_CHAT_NO_THINKING)

    def call(ids: Any, capacity: int, n_tokens: Any) -> None:
        check(lib.sq_chat_tokenize(model, array, len(array), flags, ids, capacity, n_tokens, error), error)

    n_bytes = sum(len(content) for _, content in texts)
    return cast(list[int], tokenizer.fill(call, "sq_token", n_bytes + 64))


def _by_template(
    model: Any, template: str, messages: Sequence[Mapping[str, str]], thinking: bool
) -> list[int]:
    """Renders the template, then tokenizes what came from it and what came from the contents apart.

    Where a content spells a control token, a mark stands in for it while the template is rendered: what
    the template does with contents (trim them, cut them) still works, and the token has no power.
    """
    controls = _control_texts(model)
    spelled = re.compile("|".join(re.escape(control) for control in controls) or r"(?!)")
    nonce = secrets.randbits(64)  # digits: a template may change the case of letters
    marks: dict[str, str] = {}

    def mark(match: re.Match[str]) -> str:
        key = f"\ue000{nonce}.{len(marks)}\ue001"
        marks[key] = match[0]
        return key

    marked = [{**message, "content": spelled.sub(mark, message["content"])} for message in messages]
    if not thinking and "enable_thinking" not in template:  # the name that templates know it by
        raise Error(Status.UNSUPPORTED, "this model's chat template has no switch for thinking")
    switch = {} if thinking else {"enable_thinking": False}
    rendered = render(template, marked, **_special_tokens(model), **switch)
    parts = re.split("(" + "|".join(map(re.escape, marks)) + ")", rendered) if marks else [rendered]
    ids: list[int] = []
    for part in filter(None, parts):
        plain = marks.get(part)
        ids += tokenizer.tokenize(
            model, part if plain is None else plain, special=plain is None, continues=bool(ids)
        )
    return ids


def render(template: str, messages: Sequence[Mapping[str, str]], **names: object) -> str:
    """The text of a dialogue, rendered as ``transformers`` renders chat templates."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation_tag()]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    try:
        return environment.from_string(template).render(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, **names
        )
    except jinja2.TemplateSyntaxError as error:
        raise Error(Status.FORMAT, f"tokenizer.chat_template: {error}") from error
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise Error(Status.ARGUMENT, f"the model's chat template refuses the messages: {error}") from error


def _generation_tag() -> type[Any]:
    """The tag pair {% generation %} … {% endgeneration %}, which marks answers for training."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation


def _control_texts(model: Any) -> list[str]:
    """The spellings of all control tokens, longest first."""
    info = ffi.new("sq_model_info *")
    lib.sq_model_get_info(model, info)
    found = [
        tokenizer.token_text(model, token, special=True).decode("utf-8", "replace")
        for token in range(info.n_vocab)
        if lib.sq_token_is_control(model, token)
    ]
    return sorted(filter(None, found), key=len, reverse=True)


def _special_tokens(model: Any) -> dict[str, str]:
    """The names that templates have for the spellings of special tokens, as far as the model has them."""
    ids = {"bos_token": lib.sq_token_bos(model), "eos_token": lib.sq_token_eos(model)}
    return {
        name: tokenizer.token_text(model, token, special=True).decode("utf-8", "replace")
        for name, token in ids.items()
        if token >= 0
    }
