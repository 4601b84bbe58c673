"""The examples do what they say, as printed in the README."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import sqllm

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def output(*command: str | Path, text: str = "") -> str:
    done = subprocess.run([str(part) for part in command], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_generate_py(stories4: Path) -> None:
    told = output(sys.executable, EXAMPLES / "generate.py", stories4, "Once upon a time")
    assert told.startswith("Once upon a time")
    assert len(told.split()) > 30


def test_chat_py(stories_chat: Path) -> None:
    said = output(sys.executable, EXAMPLES / "chat.py", stories_chat, text="Hello\nWho is Lily?\n")
    assert len(said.splitlines()) >= 2


@pytest.fixture(scope="module")
def generate_c(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C example, compiled against the installed header and library."""
    program = tmp_path_factory.mktemp("c") / "generate"
    folder = next(Path(path) for path in sqllm.__path__ if (Path(path) / "libsq.so").exists())
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", f"-I{folder}", f"-L{folder}", f"-Wl,-rpath,{folder}"]
    output("cc", EXAMPLES / "generate.c", *flags, "-lsq", "-o", program)
    return program


def test_generate_c(generate_c: Path, stories4: Path) -> None:
    told = output(generate_c, stories4, "Once upon a time")
    assert told.startswith("Once upon a time")
    assert len(told.split()) > 30


def test_generate_c_says_what_is_wrong(generate_c: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.sq.gguf"
    done = subprocess.run([generate_c, missing, "x"], capture_output=True, text=True)
    assert done.returncode == 1
    assert str(missing) in done.stderr
