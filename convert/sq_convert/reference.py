"""A reference for sq-eval from an unquantized checkpoint: the probabilities of each next token of a text.

    python -m sq_convert.reference FOLDER TEXT -o FILE.ref

The file is that of docs/FORMAT.md, section 6; `sq-eval MODEL.sq.gguf FILE.ref` compares models with it. The
model runs in float32 on the CPU, as transformers has it.
"""

from __future__ import annotations

import argparse
import errno
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calibrate import build_model, fill
from .checkpoint import check_tensors, open_checkpoint
from .cli import _set_environment
from .errors import ConvertError
from .progress import Progress
from .workfolder import check_place, write_atomically

MAGIC = b"SQREF\0\0\0"
VERSION = 1
UNITS = 2048  # of a row's values, to a nat
LOWEST = 65535  # stands for everything that is less probable, too
PROTOCOLS = {"gptq": 2048, "llama.cpp": 512}  # tokens of a window
ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Windows:
    """Tokens ``[n_windows, n_window]``; positions ``first`` to n_window - 2 of each are scored."""

    tokens: NDArray[np.int32]
    first: int

    @property
    def n_scored(self) -> int:
        return int(self.tokens.shape[1]) - 1 - self.first


def cut_windows(tokenizer: Any, text: str, protocol: str, n_window: int, n_windows: int | None) -> Windows:
    """The text's windows as sq-eval cuts them (runtime/tools/eval.c says how); at most ``n_windows``."""
    ids = np.asarray(tokenizer(text, verbose=False)["input_ids"], np.int32)
    least = 3 if protocol == "llama.cpp" else 2
    n_window = min(n_window, len(ids))
    if n_window < least:
        raise ConvertError(f"expected {least} tokens of text or more in a window, found {n_window}.")
    count = len(ids) // n_window
    tokens = ids[: count * n_window].reshape(count, n_window)[:n_windows].copy()
    if protocol != "llama.cpp":
        return Windows(tokens, 0)
    start = tokenizer("", verbose=False)["input_ids"][:1]
    if start:
        tokens[:, 0] = start[0]
    return Windows(tokens, n_window // 2)


def pack_rows(logits: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rows of a reference from logits ``[n, n_vocab]``: how far each lies below the top, in units."""
    top = logits.argmax(axis=1)[:, None]
    highest = np.take_along_axis(logits, top, axis=1)
    if not np.isfinite(highest).all():
        raise ConvertError("The model's logits are no finite numbers; it is damaged, and no reference.")
    rows: NDArray[np.uint16] = np.clip(np.rint(UNITS * (highest - logits)), 1, LOWEST).astype("<u2")
    np.put_along_axis(rows, top, 0, axis=1)
    return rows


def write_reference(out: Path, windows: Windows, logits: Iterator[NDArray[np.float32]], n_vocab: int) -> None:
    """Writes the file, whole or not at all. ``logits``: for each window, of its scored positions."""
    n, n_window = windows.tokens.shape
    header = MAGIC + struct.pack("<5I", VERSION, n_vocab, n_window, windows.first, n)
    size = len(header) + n * (4 * n_window + 2 * n_vocab * windows.n_scored)

    def write(path: Path) -> None:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk shows before the work
            file.write(header)
            for tokens, scored in zip(windows.tokens, logits, strict=True):
                file.write(tokens.astype("<i4").tobytes())
                for start in range(0, len(scored), ROWS_AT_ONCE):
                    file.write(pack_rows(scored[start : start + ROWS_AT_ONCE]).tobytes())

    write_atomically(out, write)


def save_reference(
    path: Path, text_path: Path, out: Path, protocol: str, ctx: int | None, n_windows: int | None
) -> None:
    """The command: a reference of the checkpoint ``path`` over a text file."""
    import torch

    checkpoint = open_checkpoint(path)
    tensors = check_tensors(checkpoint)
    check_place(out)
    if out.exists() and not _is_reference(out):
        raise ConvertError(f"{out} exists and is no reference; choose another name.")
    text = text_path.read_bytes().decode("utf-8", "replace")
    trained = checkpoint.config.max_position_embeddings
    n_window = ctx or min(PROTOCOLS[protocol], trained)
    windows = cut_windows(checkpoint.tokenizer(), text, protocol, n_window, n_windows)
    model = build_model(checkpoint, "cpu")
    fill(dict(model.named_parameters()), checkpoint, tensors)
    progress = Progress()

    def logits() -> Iterator[NDArray[np.float32]]:
        with progress.stage("reference", len(windows.tokens), "windows") as step:
            for tokens in windows.tokens:
                ids = torch.from_numpy(tokens[None].astype(np.int64))
                with torch.no_grad():
                    found = model(ids, use_cache=False, logits_to_keep=windows.n_scored + 1).logits
                yield found[0, :-1].float().numpy()
                step.advance()

    write_reference(out, windows, logits(), checkpoint.config.vocab_size)
    progress.say(f"{out}: {windows.tokens.size} tokens. Compare with it: sq-eval MODEL.sq.gguf {out}")


def _is_reference(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Exit status: 0 done, 1 impossible, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m sq_convert.reference",
        description="Keeps a checkpoint's probabilities over a text, for sq-eval to compare with.",
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="Hugging Face folder or .gguf file, not quantized")
    add("text", type=Path, metavar="TEXT", help="text file")
    add("-o", dest="out", type=Path, metavar="OUT", required=True, help="the file to write: NAME.ref")
    add("--protocol", choices=tuple(PROTOCOLS), default="gptq", help="as sq-eval has them (gptq)")
    add("--ctx", type=_positive, metavar="N", help="window (the protocol's, at most the trained context)")
    add("--windows", type=_positive, metavar="N", help="only the first so many (all)")
    args = parser.parse_args(arguments)
    _set_environment()
    try:
        save_reference(args.model, args.text, args.out, args.protocol, args.ctx, args.windows)
        return 0
    except ConvertError as error:
        message = str(error)
    except KeyboardInterrupt:
        print("sq_convert.reference: interrupted.", file=sys.stderr)
        return 130
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        message = f"{error.filename or args.out}: {error.strerror}." + (" Free some space." if full else "")
    print(f"sq_convert.reference: {message}", file=sys.stderr)
    return 1


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


if __name__ == "__main__":
    sys.exit(main())
