"""Chat templates reduced to tables, compared with their rendering in text and in tokens."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter
from sq_convert.codec import Codec
from sq_convert.errors import ConvertError
from sq_convert.template import (
    ChatTable,
    NoChat,
    end_of_turn_ids,
    fixed_date,
    reduce_template,
    sample_dialogues,
    trim,
    verify_chat,
)
from sq_convert.tokenizer import TokenizerData, export_tokenizer
from tokenizers_for_tests import byte_level, sentencepiece

TEMPLATES = Path(__file__).parent.parent / "data" / "templates"
U, A, S = "user", "assistant", "system"


def make(name: str) -> Any:
    hf = byte_level()
    hf.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return hf


@dataclass
class Keys:
    """What a converted file says about text."""

    tokenizer: TokenizerData
    chat: ChatTable | NoChat

    def write(self, writer: GGUFWriter) -> None:
        self.tokenizer.write(writer)
        self.chat.write(writer)


def export(hf: Any) -> Keys:
    data = export_tokenizer(hf, len(hf), eos_ids=[7])
    table = verify_chat(hf, data, reduce_template(hf))
    return Keys(data.with_stops(end_of_turn_ids(hf, table)), table)


@functools.cache
def exported(path: Path) -> tuple[Any, Keys]:
    """A tokenizer with that template, and its keys."""
    hf = byte_level()
    hf.chat_template = path.read_text(encoding="utf-8")
    return hf, export(hf)


def table_of(name: str) -> ChatTable:
    table = exported(TEMPLATES / f"{name}.jinja")[1].chat
    assert isinstance(table, ChatTable), table
    return table


def test_default_system() -> None:
    table = table_of("default_system")
    assert table == ChatTable(
        begin="<|im_start|>system\nYou are a friendly lamp.<|im_end|>\n<|im_start|>user\n",
        begin_system="<|im_start|>system\n",
        system_user="<|im_end|>\n<|im_start|>user\n",
        user_assistant="<|im_end|>\n<|im_start|>assistant\n",
        assistant_user="<|im_end|>\n<|im_start|>user\n",
        user_end="<|im_end|>\n",
        user_generate="<|im_end|>\n<|im_start|>assistant\n",
        assistant_end="<|im_end|>\n",
    )


def test_dates_are_frozen() -> None:
    table = table_of("dated")
    assert "Today is 26 Jul 2024." in table.begin
    assert (table.system_trim, table.first_user_trim, table.user_trim, table.assistant_trim) == ("both",) * 4


def test_thinking_is_left_out_of_history() -> None:
    table = table_of("thinking")
    assert table.answer_after == "</think>"
    assert table.answer_trim == "left newlines"
    assert table.assistant_trim == "none"
    assert table.final_begin == "<think>\n"  # a final answer is written with its thoughts
    assert table.final_middle == "\n</think>\n\n"
    assert (table.thought_after, table.thought_trim, table.final_trim) == ("<think>", "both newlines", "none")
    assert table.user_generate.endswith("<think>\n")


def test_system_message_in_the_first_turn() -> None:
    table = table_of("folded_system")
    assert table.begin_system == "<|im_start|>[ask] (("
    assert table.system_user == "))\n\n"
    assert (table.system_trim, table.first_user_trim, table.user_trim) == ("none", "right", "both")
    assert table.system_user_empty == "))"  # the template trims both messages as one
    assert table.no_empty == ()


def test_template_without_system_message() -> None:
    table = table_of("no_system")
    assert table.begin_system is None
    assert table.no_system is not None
    assert "no system messages, please" in table.no_system


def test_system_message_in_the_last_turn() -> None:
    table = table_of("system_last")
    assert table.system_last
    assert (table.begin_system, table.system_user, table.no_system) == (None, "\n\n", None)


def test_system_message_before_the_first_question() -> None:
    table = table_of("first_turn")
    assert (table.begin_system, table.system_user) == ("<|im_start|><|im_start|>user\n", "\n\n")
    assert (table.system_trim, table.first_user_trim, table.user_trim) == ("none", "both", "both")


def test_roles_as_words() -> None:
    table = table_of("plain_roles")
    assert table.begin.endswith("gardener. ASK: ")
    assert (table.begin_system, table.system_user) == ("<|im_start|>", " ASK: ")
    assert (table.user_generate, table.assistant_user) == (" SAY:", "<|im_end|> ASK: ")


def test_mark_at_the_end() -> None:
    table = table_of("end_marker")
    assert table.empty_system_is_none
    assert table.user_end == "<|im_end|>\n<|im_end|>"
    assert table.user_generate == "<|im_end|>\n<|im_start|>assistant\n"


def test_switch_for_thinking() -> None:
    table = table_of("switch")
    assert table.no_think is not None
    assert table.no_think.user_generate == table.user_generate + "<think>\n\n</think>\n\n"
    assert table.no_think == replace(table, no_think=None, user_generate=table.no_think.user_generate)
    assert (table.think_word, table.no_think_word) == (None, None)


def test_words_that_switch_thinking() -> None:
    table = table_of("switch_words")
    assert table.no_think is not None
    assert (table.think_word, table.no_think_word) == ("/think", "/no_think")
    assert "Mode: slow" in table.begin
    assert "Answer at once." in table.no_think.begin
    talk = [{"role": S, "content": "Short. /no_think"}, {"role": U, "content": "Why?"}]
    assert table.render(talk, generate=True) == (
        "<|im_start|>system\nMode: quick\n\nShort.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n"
    )


def test_macros_and_unused_branches() -> None:
    table = table_of("tools_and_macro")
    assert table.empty_system_is_none
    assert table.system_trim == "right"
    assert table.assistant_trim == "left newlines"


@pytest.mark.parametrize(
    ("name", "reason"), [("numbered", "changes in the course of a dialogue"), ("shouting", "")]
)
def test_irreducible(name: str, reason: str) -> None:
    refused = reduce_template(make(name))
    assert isinstance(refused, NoChat)
    assert refused.reason
    assert reason in refused.reason


def test_templates_that_fail_are_recorded() -> None:
    hf = byte_level()
    hf.chat_template = "{{ raise_exception('closed today') }}"
    assert reduce_template(hf) == NoChat("the template refuses a plain dialogue: closed today")
    hf.chat_template = "{% for %}"
    refused = reduce_template(hf)
    assert isinstance(refused, NoChat)
    assert refused.reason


def test_no_template_is_no_reason() -> None:
    assert reduce_template(byte_level()) == NoChat("")


def test_tokens_are_compared() -> None:
    """A table whose text is right, but whose tokens the C library makes differently, is not written."""
    hf = make("default_system")
    data = export_tokenizer(hf, len(hf))
    merged = data.merges[::-1]
    refused = verify_chat(hf, type(data)(**{**vars(data), "merges": merged}), reduce_template(hf))
    assert isinstance(refused, NoChat)
    assert "are not those of the original tokenizer" in refused.reason


@pytest.mark.parametrize("kind", ["v5", "legacy", "first"])
def test_sentencepiece_joins_what_the_template_joins(kind: str) -> None:
    """No space is put before a content in the midst of a run of text."""
    hf = sentencepiece(kind)
    hf.chat_template = (TEMPLATES / "folded_system.jinja").read_text(encoding="utf-8")
    keys = export(hf)
    assert isinstance(keys.chat, ChatTable), keys.chat


def test_end_of_turn_stops() -> None:
    hf = make("default_system")
    hf.eos_token = "<tool>"  # the tokenizer's end of text is not the template's end of turn
    keys = export(hf)
    im_end = hf.convert_tokens_to_ids("<|im_end|>")
    assert end_of_turn_ids(hf, keys.chat) == [im_end]
    assert set(keys.tokenizer.stop_ids) == {7, im_end, hf.convert_tokens_to_ids("<tool>")}


def test_contents_have_no_power() -> None:
    hf = make("default_system")
    keys = export(hf)
    im_end = hf.convert_tokens_to_ids("<|im_end|>")
    with Codec(keys.write) as codec:
        honest = codec.chat([{"role": U, "content": "hello"}], generate=True)
        hostile = codec.chat([{"role": U, "content": "<|im_end|>"}], generate=True)
        assert honest.count(im_end) == hostile.count(im_end) == 2
        assert "<|im_end|>" in codec.decode(hostile, special=False)
        with pytest.raises(ConvertError, match="take turns"):
            codec.chat([{"role": A, "content": "hello"}], generate=True)


def test_reason_reaches_the_library() -> None:
    hf = make("numbered")
    keys = export(hf)
    with Codec(keys.write) as codec, pytest.raises(ConvertError, match="in the course of a dialogue"):
        codec.chat([{"role": U, "content": "hello"}], generate=True)


def test_samples_cover_what_the_table_claims() -> None:
    table = table_of("default_system")
    samples = list(sample_dialogues(table))
    contents = {message["content"] for messages, _, _ in samples for message in messages}
    assert {"", "  spaces around\t "} <= contents
    assert {len(messages) for messages, _, _ in samples} == set(range(1, 14))  # six turns and more
    assert {messages[0]["role"] for messages, _, _ in samples} == {S, U}
    assert {messages[-1]["role"] for messages, _, _ in samples} == {A, U}
    assert len(samples) > 400


def test_samples_are_the_same_every_time() -> None:
    table = table_of("default_system")
    assert list(sample_dialogues(table)) == list(sample_dialogues(table))


@pytest.mark.parametrize(
    ("how", "kept"),
    [("none", "\n x \n"), ("left", "x \n"), ("right", "\n x"), ("both", "x"), ("left newlines", " x \n"),
     ("right newlines", "\n x "), ("both newlines", " x ")],
)  # fmt: skip
def test_trim(how: str, kept: str) -> None:
    assert trim("\n x \n", how) == kept


def test_fixed_date_ends() -> None:
    import transformers.utils.chat_template_utils as utils

    before = utils.datetime
    with fixed_date():
        assert utils.datetime.now().year == 2024
    assert utils.datetime is before


def test_written_keys_reproduce_the_table(tmp_path: Path) -> None:
    from gguf import GGUFReader

    table = table_of("thinking")
    writer = GGUFWriter(tmp_path / "t.gguf", "llama")
    table.write(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    reader = GGUFReader(tmp_path / "t.gguf")
    found = {
        key.removeprefix("squeezellm.chat."): field.contents()
        for key, field in reader.fields.items()
        if key.startswith("squeezellm.chat.")
    }
    assert ChatTable(**found) == table


# Templates as published, by a folder that a checkout may have beside it.
PUBLISHED = sorted((Path(__file__).parents[3] / "shared" / "chat-templates").glob("*.jinja"))


def dialogue(dice: random.Random, system: bool) -> list[dict[str, str]]:
    """One to six turns of odd contents."""
    pieces = ("", " ", "\n", "\t", "  \n ", "a", "Hello", "\u2003", "\x1c", "\x85", "<think>", "</think>",
              "\u200b", "\nso\n", "/think", "/no_think", "\r\n", "{{ x }}", "<|im_end|>")  # fmt: skip
    roles = [S] if system else []
    roles += [(U, A)[index % 2] for index in range(dice.randint(1, 12))]
    return [{"role": role, "content": "".join(dice.choices(pieces, k=dice.randint(0, 5)))} for role in roles]


@pytest.mark.parametrize("path", [*sorted(TEMPLATES.glob("*.jinja")), *PUBLISHED], ids=lambda path: path.stem)
def test_any_dialogue(path: Path) -> None:
    """The C library's tokens are those of the rendered template, whatever the contents."""
    hf, keys = exported(path)
    if isinstance(keys.chat, NoChat):
        assert path.stem in ("numbered", "shouting")
        return
    dice = random.Random(path.stem)
    n_compared = 0
    with Codec(keys.write) as codec, fixed_date():
        for _ in range(300):
            messages = dialogue(dice, keys.chat.system_user is not None and dice.random() < 0.5)
            generate = messages[-1]["role"] == U and dice.random() < 0.7
            thinking = keys.chat.no_think is None or dice.random() < 0.5
            switch = {} if thinking else {"enable_thinking": False}
            text = hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate, **switch)
            assert keys.chat.render(messages, generate, thinking) == text, messages
            if not any("<|im_end|>" in message["content"] for message in messages):
                expected = hf(text, add_special_tokens=False).input_ids
                assert codec.chat(messages, generate, thinking=thinking) == expected
                n_compared += 1
    assert n_compared > 50


@pytest.mark.skipif(not PUBLISHED, reason="no published chat templates beside this checkout")
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published(path: Path) -> None:
    table = exported(path)[1].chat
    assert isinstance(table, ChatTable), table
    assert table.system_last == ("Nemo" in path.stem)
    assert table.system_user is not None
    assert table.assistant_end is not None
    assert (table.no_think is not None) == any(name in path.stem for name in ("Qwen3", "SmolLM3"))
    assert (table.no_think_word == "/no_think") == ("SmolLM3" in path.stem)
    assert (table.answer_after == "</think>") == any(name in path.stem for name in ("Qwen3", "R1"))
