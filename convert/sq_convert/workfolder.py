"""OUT.sq.gguf.work/: what finished stages left behind, and the manifest of what they were made from."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import ConvertError

MANIFEST = "manifest.json"


class WorkFolder:
    """The folder of one conversion in progress. Whoever holds it holds its lock."""

    def __init__(self, out: Path) -> None:
        self.path = out.with_name(out.name + ".work")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Creates the folder and keeps a second converter off the same output meanwhile."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConvertError(
                    f"{self.path} is in use: another sq-convert is writing the same output."
                ) from None
            yield

    def file(self, name: str) -> Path:
        return self.path / name

    def keep_matching(
        self, stages: Mapping[str, Mapping[str, Any]], files: Mapping[str, list[str]]
    ) -> list[str]:
        """Throws away every stage whose description differs from the manifest's, and those after it.

        ``stages`` says, in order, what each stage's result depends on; ``files`` are glob patterns of its
        results. Writes the manifest anew. Returns what was thrown away and why, a sentence each.
        """
        before = self._read_manifest()
        said: list[str] = []
        stale = False
        for stage, description in stages.items():
            wanted = json.loads(json.dumps(description))
            changed = sorted(key for key in wanted.keys() | before.get(stage, {}).keys()
                             if wanted.get(key) != before.get(stage, {}).get(key))  # fmt: skip
            stale = stale or bool(changed)
            results = [path for pattern in files[stage] for path in self.path.glob(pattern)]
            if stale and results:
                reason = (
                    f"changed since: {', '.join(changed)}" if changed else "an earlier stage is done anew"
                )
                said.append(f"{stage}: starting over ({reason}).")
                for path in results:
                    path.unlink()
        write_atomically(
            self.file(MANIFEST), lambda path: path.write_text(json.dumps(dict(stages), indent=1))
        )
        return said

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def _read_manifest(self) -> dict[str, Any]:
        try:
            value = json.loads(self.file(MANIFEST).read_text())
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) and all(isinstance(v, dict) for v in value.values()) else {}


def check_place(path: Path) -> None:
    """That the folder of ``path`` is there: asked before the work whose result goes to it."""
    if not path.absolute().parent.is_dir():
        raise ConvertError(f"{path.absolute().parent}: no such folder to write to.")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """``write`` fills a file beside ``path``, which then takes its place: whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def hash_file(path: Path, advance: Callable[[int], object] = lambda _: None) -> str:
    """SHA-256 of a file's content; ``advance`` hears of bytes as they are read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
            advance(len(piece))
    return digest.hexdigest()
