"""The chat of sq-run in a terminal, typed and read through a pseudo-terminal."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

PROMPT, MORE, BELL = "\r\n> ", "\r\n. ", "\a"
PASTE = "\x1b[200~{}\x1b[201~"
SPEED = r"\[(\d+) tokens?, .* tok/s; prompt (\d+) tokens, (\d+) of them new, .* context (\d+) of (\d+)\]"


class Terminal:
    """A chat in a terminal without colours. Greedy and short, so that answers are the same each time."""

    def __init__(self, command: list[str], home: Path, **environment: str) -> None:
        env = {
            "HOME": str(home),
            "TERM": "xterm",
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
            "PATH": os.environ["PATH"],
        }
        size = (40, 200)
        self.child: Any = pexpect.spawn(
            command[0], command[1:], env={**env, **environment}, encoding="utf-8", dimensions=size, timeout=30
        )
        self.child.delaybeforesend = None
        self.hello = self.read()

    def read(self) -> str:
        """What is written up to the next prompt."""
        self.child.expect_exact(PROMPT)
        return str(self.child.before)

    def say(self, line: str) -> str:
        """Types a line; what follows up to the next prompt, the line's echo included."""
        self.child.send(line + "\r")
        return self.read()

    def ask(self, message: str) -> str:
        """The answer to a message of one line."""
        found = self.say(message)
        assert re.search(SPEED, found), found
        return found[: found.rindex("\r\n[")].removeprefix(message).split("\r\n(stopped")[0].strip()

    def ends(self) -> int | None:
        """Waits for the end; the exit code."""
        self.child.expect(pexpect.EOF)
        self.child.close()
        status: int | None = self.child.exitstatus
        return status


Open = Callable[..., Terminal]


@pytest.fixture
def chat(sq_run: str, stories_chat: Path, tmp_path: Path) -> Iterator[Open]:
    """`chat(*options)` starts a chat; the home folder is the test's."""
    opened: list[Terminal] = []

    def start(*options: str, home: Path = tmp_path, **environment: str) -> Terminal:
        command = [sq_run, str(stories_chat), "--threads", "1", "--temp", "0", "-n", "12", *options]
        opened.append(Terminal(command, home, **environment))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.child.close(force=True)


def saved(terminal: Terminal, path: Path) -> list[tuple[str, str]]:
    """The dialogue as /save writes it."""
    assert "(saved" in terminal.say(f"/save {path}")
    return [(m["role"], m["content"]) for m in json.loads(path.read_text())["messages"]]


def users(messages: list[tuple[str, str]]) -> list[str]:
    return [content for role, content in messages if role == "user"]


# ---- starting and leaving ----------------------------------------------------------------------------------


def test_hello_says_what_runs(chat: Open) -> None:
    hello = chat("--ctx", "300").hello
    runs = r"CPU \w+, prompts in \w+, 1 thread, context 300 tokens\. /help lists the commands\."
    assert re.search(runs, hello)


def test_ways_to_leave(chat: Open) -> None:
    for leave in ("/exit\r", "\x04"):
        terminal = chat()
        terminal.child.send(leave)
        assert terminal.ends() == 0
    terminal = chat()
    terminal.child.send("\x03")
    assert "Ctrl-C again" in terminal.read()
    terminal.child.send("\x03")
    assert terminal.ends() == 0


def test_interrupt_clears_the_line(chat: Open) -> None:
    terminal = chat()
    terminal.child.send("nonsense\x03")
    assert "temp 0" in terminal.say("/info"), "the line is gone, and one Ctrl-C does not leave"
    terminal.child.send("\x03")
    terminal.read()
    terminal.say("/info")
    terminal.child.send("\x03")
    assert "Ctrl-C again" in terminal.read(), "two in a row leave, not two in all"


def test_terminated_chat_leaves_the_terminal_right(chat: Open) -> None:
    terminal = chat()
    terminal.child.kill(signal.SIGTERM)
    terminal.child.expect(pexpect.EOF)
    assert "\x1b[?2004l" in terminal.child.before, "pastes are reported no longer"
    terminal.child.close()
    assert terminal.child.signalstatus == signal.SIGTERM


# ---- answers -----------------------------------------------------------------------------------------------


def test_only_answers_go_to_standard_output(
    chat: Open, tmp_path: Path, sq_run: str, stories_chat: Path
) -> None:
    """Standard output is a file; prompt, remarks and echo stay in the terminal."""
    out = tmp_path / "out"
    command = 'exec "$0" "$1" --threads 1 --temp 0 -n 12 > "$2"'
    terminal = Terminal(["/bin/sh", "-c", command, sq_run, str(stories_chat), str(out)], tmp_path)
    terminal.say("Once upon")
    terminal.say("/info")
    terminal.child.send("/exit\r")
    assert terminal.ends() == 0
    answer = chat().ask("Once upon")
    assert answer
    assert out.read_text() == answer.replace("\r\n", "\n") + "\n"


def test_no_colours_where_not_wanted(chat: Open) -> None:
    plain = chat()
    assert "\x1b[2m" not in plain.hello + plain.say("/info")
    colours = pexpect.spawn(
        plain.child.command,
        [a.decode() for a in plain.child.args[1:]],
        env={**plain.child.env, "NO_COLOR": ""},
        encoding="utf-8",
    )
    colours.expect_exact("\x1b[2m")
    colours.close(force=True)


def test_dialogue_goes_on_and_the_prefix_is_kept(chat: Open) -> None:
    terminal = chat("-n", "40")
    first = re.search(SPEED, terminal.say("Once upon a time"))
    second = re.search(SPEED, terminal.say("And then?"))
    assert first
    assert second
    n_context, n_prompt, n_new = int(first[4]), int(second[2]), int(second[3])
    assert n_prompt > n_context, "the prompt holds all that was said"
    assert n_new == n_prompt - n_context, "and only what is new is computed"


def test_prefix_is_kept_where_text_splits_otherwise(chat: Open) -> None:
    """Drawn at random, the tokens of an answer are often not those that its text is split into: with
    these seeds, for example."""
    for seed in (3, 8, 11):
        terminal = chat("-n", "40", "--temp", "2", "--seed", str(seed))
        first = re.search(SPEED, terminal.say("Once upon a time"))
        second = re.search(SPEED, terminal.say("And then?"))
        assert first
        assert second
        assert int(second[3]) == int(second[2]) - int(first[4]), f"seed {seed}"


def test_interrupt_stops_the_answer_and_keeps_the_chat(chat: Open, tmp_path: Path) -> None:
    terminal = chat("-n", "0", "--ctx", "512", "--temp", "5", "--top-k", "0", "--top-p", "1", "--min-p", "0")
    for _ in range(20):  # the model is fast: an answer may have ended before Ctrl-C comes
        terminal.say("/clear")
        terminal.child.send("Once upon a time\r")
        terminal.child.expect_exact("time\r\n")
        terminal.child.expect(r"[^\r\n]")
        terminal.child.sendintr()
        found = terminal.read()
        if "(stopped)" in found:
            break
    else:
        pytest.fail("Ctrl-C never stopped an answer")
    messages = saved(terminal, tmp_path / "chat.json")
    assert [role for role, _ in messages] == ["user", "assistant"]
    assert messages[1][1], "the answer so far is kept"
    terminal.say("/set n 5")
    assert re.search(SPEED, terminal.say("Go on")), "and the chat goes on"


def test_full_context_is_said(chat: Open, tmp_path: Path) -> None:
    terminal = chat("--ctx", "60", "-n", "0")
    found = ""
    for _ in range(8):
        found = terminal.say("Once upon a time")
        if "sq-run:" in found:
            break
    for part in ("context", "60 tokens", "/clear", "--ctx TOKENS makes room"):
        assert part in found
    before = saved(terminal, tmp_path / "before.json")
    found = terminal.say("word " * 60)
    assert "the context holds 60; the message is taken back" in found
    assert saved(terminal, tmp_path / "after.json") == before
    terminal.say("/clear")
    assert terminal.ask("A dog")


def test_control_characters_of_a_model_never_reach_the_terminal(sq_run: str, stories4: Path) -> None:
    """Nearly uniform draws among 512 tokens, 256 of which are single bytes."""
    draw = "--temp 100 --top-k 0 --top-p 1 --min-p 0 --seed 1"
    command = f"{sq_run} {stories4} --raw -p x -n 400 --threads 1 {draw}"
    piped = subprocess.run(shlex.split(command), capture_output=True, stdin=subprocess.DEVNULL).stdout
    shown = pexpect.run(command)
    control = set(range(0x20)) - set(b"\r\n\t") | {0x7F}
    assert set(piped) & control, "a pipe gets what the model said"
    assert not set(shown) & control
    shown.decode()  # valid UTF-8


def test_control_characters_of_a_file_never_reach_the_terminal(chat: Open, tmp_path: Path) -> None:
    """Text that is not ours is shown without escape sequences."""
    path = tmp_path / "evil.json"
    messages = [{"role": "user", "content": "\x1b]0;evil\x07"}, {"role": "assistant", "content": "x"}]
    path.write_text(json.dumps({"messages": messages}))
    terminal = chat()
    terminal.say(f"/load {path}")
    found = terminal.say("/undo")
    assert "]0;evil" in found
    assert "\x1b]0" not in found


# ---- typing ------------------------------------------------------------------------------------------------


def test_message_of_several_lines(chat: Open, tmp_path: Path) -> None:
    terminal = chat()
    terminal.child.send('"""one\r')
    terminal.child.expect_exact(MORE)
    terminal.child.send("two\r")
    terminal.child.expect_exact(MORE)
    terminal.say('"""')
    terminal.say('"""in one line"""')
    assert users(saved(terminal, tmp_path / "chat.json")) == ["one\ntwo", "in one line"]
    terminal.child.send('"""lost\r')
    terminal.child.expect_exact(MORE)
    terminal.child.send("\x03")
    terminal.read()
    assert len(users(saved(terminal, tmp_path / "chat.json"))) == 2


def test_pasted_lines_are_one_message(chat: Open, tmp_path: Path) -> None:
    terminal = chat()
    assert "\x1b[?2004h" in terminal.hello, "the terminal is asked to report pastes"
    terminal.say("see " + PASTE.format("one\r\n\ttwo\r日本 🙂\x1b[31m\x03\rlast") + "!")
    terminal.say(PASTE.format("/exit\rand more"))
    assert users(saved(terminal, tmp_path / "chat.json")) == [
        "see one\n\ttwo\n日本 🙂[31m\nlast!",
        "/exit\nand more",
    ]


def test_emoji_and_cjk_are_typed_and_edited(chat: Open, tmp_path: Path) -> None:
    terminal = chat(LANG="")  # even where the locale knows ASCII only
    terminal.say("日本X🙂\x1b[D\x7f語")
    assert users(saved(terminal, tmp_path / "chat.json")) == ["日本語🙂"]


def test_completion(chat: Open) -> None:
    terminal = chat()
    terminal.child.send("/inf\t\r")
    assert "settings" in terminal.read()
    terminal.child.send("/set top\t")
    terminal.child.send("k 7\r")
    assert "(top-k is 7)" in terminal.read()
    terminal.child.send("/nonsense\t")
    terminal.child.expect_exact(BELL)


def test_history_lasts_and_is_private(chat: Open, tmp_path: Path) -> None:
    terminal = chat()
    terminal.say("/set temp 0.5")
    terminal.say("/set temp 0.5")
    terminal.say("/set temp 0.25")
    terminal.child.send("/exit\r")
    assert terminal.ends() == 0
    path = tmp_path / ".local/state/squeezellm/history"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().splitlines() == ['"/set temp 0.5"', '"/set temp 0.25"', '"/exit"']
    with path.open("ab") as file:
        file.write(b'damaged\n"\xff"\n"\\u0000"\n')
    terminal = chat()
    assert "(temp is 0.25)" in terminal.say("\x1b[A\x1b[A"), "the second last entry of the run before"


def test_history_keeps_lines(chat: Open, tmp_path: Path) -> None:
    terminal = chat()
    terminal.say(PASTE.format("one\rtwo"))
    terminal.say("\x1b[A!")
    assert users(saved(terminal, tmp_path / "chat.json")) == ["one\ntwo", "one\ntwo!"]


def test_history_where_there_is_no_home(chat: Open, tmp_path: Path) -> None:
    state = tmp_path / "state"
    chat(HOME="/nonexistent", XDG_STATE_HOME=str(state)).say("/help")
    assert (state / "squeezellm/history").read_text() == '"/help"\n'
    assert "temp 0" in chat(HOME="/dev/null/x").say("/info")
    assert "temp 0" in chat(HOME="").say("/info")


# ---- commands ----------------------------------------------------------------------------------------------


COMMANDS = ["/help", "/exit", "/clear", "/retry", "/undo", "/system", "/set", "/save", "/load", "/info"]


def test_help_lists_all_commands(chat: Open) -> None:
    found = chat().say("/help")
    for command in COMMANDS:
        assert f"\n{command} " in found


def test_wrong_commands(chat: Open) -> None:
    terminal = chat()
    for line, expected in [
        ("/nonsense", "unknown command /nonsense"),
        ("/clear all", "/clear: expected nothing after it"),
        ("/set", "/set: expected NAME VALUE"),
        ("/set temp", "names are n, temp, top-k"),
        ("/set warmth 3", "names are n, temp, top-k"),
        ("/set think 0", "no switch for thinking"),
        ("/set temp warm", '/set temp: expected a number from 0 to 100, found "warm"'),
        ("/save", "/save: expected FILE"),
        ("/retry", "no answer yet"),
        ("/undo", "nothing to take back"),
    ]:
        assert expected in terminal.say(line)


def test_retry_and_undo(chat: Open, tmp_path: Path) -> None:
    terminal = chat("--temp", "1", "--seed", "3")
    first = terminal.ask("Once upon a time")
    answers = {terminal.ask("/retry") for _ in range(5)}
    assert answers - {first}, "another answer, for the random numbers go on"
    messages = saved(terminal, tmp_path / "chat.json")
    assert len(messages) == 2
    terminal.ask("And then?")
    assert "taken back: And then?" in terminal.say("/undo")
    assert saved(terminal, tmp_path / "chat.json") == messages
    assert chat("--temp", "1", "--seed", "3").ask("Once upon a time") == first


def test_clear_forgets(chat: Open) -> None:
    terminal = chat()
    first = terminal.ask("Once upon a time")
    other = terminal.ask("Once upon a time")
    terminal.say("/clear")
    assert terminal.ask("Once upon a time") == first
    assert other != first, "what was said before counts"


def test_system_prompt(chat: Open, tmp_path: Path) -> None:
    terminal = chat("--system", "Tom")
    with_tom = terminal.ask("Hello")
    terminal.say("/clear")
    terminal.say("/system")
    without = terminal.ask("Hello")
    assert with_tom != without
    terminal.say("/clear")
    terminal.say("/system Tom")
    assert terminal.ask("Hello") == with_tom
    assert saved(terminal, tmp_path / "chat.json")[0] == ("system", "Tom")
    assert "system    Tom" in terminal.say("/info")


def test_info_shows_settings_and_seed(chat: Open) -> None:
    seeds = set()
    for _ in range(2):
        found = re.search(r" n 12 temp 0 .* seed (\d+)", chat().say("/info"))
        assert found
        seeds.add(found[1])
    assert len(seeds) == 2, "each chat has a seed of its own"
    assert "seed 42" in chat("--seed", "42").say("/info")


def test_save_and_load(chat: Open, tmp_path: Path) -> None:
    path = tmp_path / "my chat.json"
    terminal = chat("--system", 'A "quote"', "--top-k", "7")
    terminal.ask("Once upon a time")
    messages = saved(terminal, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    next_answer = terminal.ask("And then?")

    other = chat()
    assert "(loaded 1 turn" in other.say("/load ~/my\\ chat.json")
    assert " top-k 7 " in other.say("/info")
    assert saved(other, tmp_path / "again.json") == messages
    assert other.ask("And then?") == next_answer
    assert sorted(p.name for p in tmp_path.iterdir()) == [".local", "again.json", "my chat.json"], (
        "no other files"
    )


def test_save_replaces_dialogues_only(chat: Open, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("important")
    terminal = chat()
    assert "exists and is no saved dialogue" in terminal.say(f"/save {notes}")
    assert notes.read_text() == "important"
    assert "cannot write" in terminal.say(f"/save {tmp_path}/missing/chat.json")
    assert saved(terminal, tmp_path / "chat.json") == saved(terminal, tmp_path / "chat.json")


USER, ASSISTANT = '{"role": "user", "content": "a"}', '{"role": "assistant", "content": "b"}'


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected {"),
        (b"[]", "expected {"),
        (b"{}", 'no "messages"'),
        (b'{"messages": []} x', "expected the end of the file"),
        (b'{"messages": [], "messages": []}', "each at most once"),
        (b'{"messages": [], "other": 1}', '"messages", "settings" and "model"'),
        (f'{{"messages": [{USER}]}}'.encode(), "the last question has no answer"),
        (f'{{"messages": [{ASSISTANT}]}}'.encode(), "out of order"),
        (f'{{"messages": [{USER}, {USER}]}}'.encode(), "out of order"),
        (f'{{"messages": [{USER}, {ASSISTANT},]}}'.encode(), "expected {"),
        (b'{"messages": [{"role": "user"}]}', "without role or content"),
        (b'{"messages": [{"role": "tool", "content": ""}]}', "out of order"),
        (b'{"messages": [{"role": "system", "content": 1}]}', "expected a string"),
        (b'{"messages": [{"role": "system", "content": "\\ud800"}]}', "surrogate"),
        (b'{"messages": [{"role": "system", "content": "\\u0000"}]}', "a zero character"),
        (b'{"messages": [{"role": "system", "content": "\xff"}]}', "invalid UTF-8"),
        (b'{"messages": [{"role": "system", "content": "\x1b"}]}', "a control character"),
        (b'{"messages": [{"role": "system", "content": "', "a string without an end"),
        (b'{"settings": {"temp": 101}, "messages": []}', "out of range"),
        (b'{"settings": {"temp": "1"}, "messages": []}', "expected a number"),
        (b'{"settings": {"temp": 01}, "messages": []}', "expected a number"),
        (b'{"settings": {"warmth": 1}, "messages": []}', "an unknown setting"),
        (b'{"messages":\n\n[' + b"[" * 100_000, "line 3"),
    ],
)
def test_load_refuses(chat: Open, tmp_path: Path, content: bytes, expected: str) -> None:
    """A sentence, and neither the chat nor the settings have changed."""
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    terminal = chat("-n", "3", "--seed", "1")
    terminal.ask("Once upon a time")
    before, settings = saved(terminal, tmp_path / "chat.json"), terminal.say("/info")
    found = terminal.say(f"/load {path}")
    assert f"{path} is no saved dialogue: line " in found
    assert expected in found
    assert saved(terminal, tmp_path / "chat.json") == before
    assert terminal.say("/info") == settings


def test_raw_needs_a_text(chat: Open, sq_run: str, stories4: Path) -> None:
    for options, expected in [(["--raw"], "--raw completes one text"), ([], "--raw -p TEXT")]:
        child = pexpect.spawn(sq_run, [str(stories4), *options], encoding="utf-8")
        child.expect_exact(expected)
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus != 0


def test_keys_during_an_answer_come_after_it(chat: Open, tmp_path: Path) -> None:
    terminal = chat()
    terminal.child.send("one\rtwo\rthree\r")
    for _ in range(3):
        assert re.search(SPEED, terminal.read())
    assert users(saved(terminal, tmp_path / "chat.json")) == ["one", "two", "three"]


def test_suspended_chat_goes_on(chat: Open, tmp_path: Path) -> None:
    shell = Terminal(["/bin/bash", "--norc", "-i"], tmp_path, PS1="\n> ")
    shell.say(" ".join([chat().child.command, *(a.decode() for a in chat().child.args[1:])]))
    shell.child.send("/in\x1a")
    shell.child.expect_exact("Stopped")
    shell.read()
    shell.child.send("fg\r")
    shell.child.expect_exact("> /in")
    assert "settings" in shell.say("fo")
    shell.child.close(force=True)


def test_help_is_the_same_without_a_terminal(sq_run: str) -> None:
    assert subprocess.run([sq_run, "--help"], capture_output=True, text=True, check=True).stdout.isascii()
