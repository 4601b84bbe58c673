"""sq-convert --workers and --cluster: the same file as from a single process, whatever happens to workers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Convert
from distributed import Client

OPTIONS = ("--method", "guided", "--samples", "4", "--seq-len", "64")


@contextmanager
def process(*command: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(list(map(str, command)), text=True, **options)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


@pytest.fixture(scope="module")
def single(convert: Convert, stories: Path) -> bytes:
    """The file that one process makes."""
    return convert(stories, *OPTIONS).read_bytes()


def test_processes(convert: Convert, stories: Path, single: bytes) -> None:
    assert convert(stories, *OPTIONS, "--workers", "2").read_bytes() == single


def test_cluster_that_loses_a_worker(sq_convert: str, stories: Path, single: bytes, tmp_path: Path) -> None:
    """One of two workers is stopped at first, so that it keeps the tasks it gets, and then killed."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address, out = f"tcp://127.0.0.1:{port}", tmp_path / "model.sq.gguf"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    with ExitStack() as stack:

        def start(role: str, *words: object) -> subprocess.Popen[str]:
            command = (sys.executable, "-m", f"distributed.cli.dask_{role}", *words, "--no-dashboard")
            return stack.enter_context(process(*command, **quiet))

        start("scheduler", "--host", "127.0.0.1", "--port", port)
        workers = [start("worker", address, "--nthreads", 1, "--no-nanny", "--name", i) for i in range(2)]
        client = stack.enter_context(Client(address, timeout=60, set_as_default=False))
        client.wait_for_workers(2, timeout=60)
        (stopped,) = [a for a, known in client.scheduler_info()["workers"].items() if known["name"] == 0]
        workers[0].send_signal(signal.SIGSTOP)
        command = (sq_convert, stories, "-o", out, *OPTIONS, "--cluster", address)
        converter = stack.enter_context(process(*command, stderr=subprocess.PIPE))
        while not client.processing([stopped])[stopped]:
            assert converter.poll() is None
            time.sleep(0.05)
        workers[0].kill()
        _, said = converter.communicate(timeout=120)
    assert converter.returncode == 0, said
    assert "Traceback" not in said
    assert out.read_bytes() == single


def test_what_is_refused(sq_convert: str, stories: Path, tmp_path: Path) -> None:
    def refusal(*options: str, status: int = 1, **environment: str) -> str:
        command = [
            sq_convert,
            str(stories),
            "-o",
            str(tmp_path / "model.sq.gguf"),
            "--method",
            "rtn",
            *options,
        ]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
        assert done.returncode == status
        assert done.stderr.splitlines()[-1].startswith("sq-convert: ")
        assert "Traceback" not in done.stderr
        return done.stderr.splitlines()[-1]

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    nobody = f"tcp://127.0.0.1:{port}"
    assert f"--cluster {nobody}: no Dask scheduler answers there" in refusal("--cluster", nobody)
    assert "with --cluster leave it out" in refusal("--cluster", nobody, "--workers", "2", status=2)
    assert "--workers 0: expected 1 or more" in refusal("--workers", "0", status=2)
    (tmp_path / "distributed.py").write_text("raise ImportError")
    said = refusal("--cluster", nobody, PYTHONPATH=str(tmp_path))
    assert said == "sq-convert: --cluster needs Dask: pip install 'sqllm[cluster]'."
