"""The command ``sq-convert``."""

from __future__ import annotations

import argparse
import ctypes
import errno
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from .errors import ConvertError, UsageError
from .measure import FISHER
from .options import METHODS, Options
from .pack import WIDTHS
from .progress import Progress
from .workfolder import check_place

_M_MMAP_THRESHOLD = -3  # of malloc.h
_CALIBRATING = ("calibration", "samples", "seq_len", "seed")
_QUANTIZING = (
    "bits",
    "bpw",
    "plan",
    "outliers",
    "sensitive",
    "method",
    "workers",
    "cluster",
    "fisher",
    "tune",
    "device",
    *_CALIBRATING,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Exit status: 0 done, 1 impossible, 2 wrong usage, 130 interrupted."""
    parser = _parser()
    args = parser.parse_args(arguments)
    _set_environment()
    _return_memory()
    progress = Progress()
    try:
        if args.dequantize:
            from .dequantize import dequantize

            dequantize(args.model, args.out, progress)
            return 0
        options = _options(args, parser)
        from . import pipeline

        (pipeline.dry_run if args.dry_run else pipeline.convert)(options, progress)
        return 0
    except UsageError as error:
        return _fail(str(error), 2)
    except ConvertError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("Interrupted. The same command goes on where it stopped.", 130)
    except MemoryError:
        return _fail("Out of memory. --dry-run says how much a conversion needs.", 1)
    except OSError as error:
        return _fail(_os_error(error, args.out), 1)


def command() -> int:
    """What the shell starts: main, and once interrupted no second Ctrl-C disturbs the end of the process."""
    status = main()
    if status == 130:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sq-convert",
        description="Converts a language model to a SqueezeLLM file, or back (--dequantize).",
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="Hugging Face folder, .gguf file, or packed sq-*.pt")
    add("-o", dest="out", type=Path, metavar="OUT", required=True, help="the file to write: NAME.sq.gguf")
    add(
        "--config",
        type=Path,
        metavar="FOLDER",
        help="the model that a packed sq-*.pt was made from: config.json, tokenizer (the file's own folder)",
    )
    add(
        "--bits",
        type=int,
        choices=(*WIDTHS, 16),
        help="bits of an index; 16 keeps the matrices in F16 (4)",
    )
    add(
        "--bpw",
        type=float,
        metavar="BITS",
        help="in place of --bits and --outliers: so many bits a weight, tables and kept weights included, "
        "shared out among the matrices",
    )
    add(
        "--plan",
        type=Path,
        metavar="FILE",
        help="with --bpw, where to write what each matrix gets (JSON); alone, what to follow",
    )
    add("--outliers", type=float, metavar="PERCENT", help="largest weights kept exactly (0.45)")
    add(
        "--sensitive",
        type=float,
        metavar="PERCENT",
        help="most sensitive weights kept exactly, of --method squeezellm (0.05)",
    )
    add(
        "--method",
        choices=METHODS,
        default="guided",
        help="guided fits a row's errors together, squeezellm is the original's; kmeans and rtn need no "
        "calibration (guided)",
    )
    add(
        "--tune",
        type=int,
        default=0,
        metavar="STEPS",
        help="then tune tables and norms to say what the original says; holds the model twice (0)",
    )
    add(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="text or JSONL to calibrate on (one inside the package)",
    )
    add("--fisher", type=Path, metavar="FOLDER", help="a gradient checkpoint; nothing is calibrated")
    add("--samples", type=int, default=100, metavar="N", help="calibration sequences (100)")
    add("--seq-len", type=int, default=512, metavar="N", help="tokens of a calibration sequence (512)")
    add("--seed", type=int, default=0, metavar="N", help="chooses the calibration sequences (0)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where it computes (auto)")
    add("--threads", type=int, default=_n_cores(), metavar="N", help="CPU threads (all cores)")
    add(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes that quantize, which share the threads; each takes memory for a matrix (1)",
    )
    add("--cluster", metavar="tcp://HOST:PORT", help="a Dask scheduler, whose workers quantize")
    add(
        "--head-bits",
        type=int,
        choices=(8, 16),
        help="embedding and head in Q8_0 or F16 (8; with --bits 16: 16)",
    )
    add(
        "--keep-work",
        action="store_true",
        help="keep the folder OUT.work: another --bits, --outliers, --bpw or --tune then calibrates no more",
    )
    add("--dry-run", action="store_true", help="print sizes, memory and time; convert nothing")
    add(
        "--dequantize",
        action="store_true",
        help="MODEL.sq.gguf to a Hugging Face folder OUT of the decoded weights",
    )
    add("--version", action="version", version=f"sq-convert {__version__}")
    return parser


def _options(args: argparse.Namespace, parser: argparse.ArgumentParser) -> Options:
    """The options, each within its range and with a meaning for this kind of model."""
    for name, low, high in (
        ("samples", 1, 1 << 31),
        ("seq_len", 2, 1 << 31),
        ("threads", 1, 1024),
        ("workers", 1, 1024),
        ("seed", 0, 1 << 64),
        ("tune", 0, 1 << 31),
    ):
        if not low <= getattr(args, name) < high:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected {low} or more.")
    if args.bpw is not None or args.plan:
        _check_plan(args)
    sensitive = args.sensitive
    if sensitive is None and (args.bpw is not None or args.plan):
        sensitive = 0.0
    elif sensitive is None:
        sensitive = 0.05 if args.method == "squeezellm" else 0.0
    elif sensitive and args.method != "squeezellm":
        raise UsageError(f"--sensitive needs --method squeezellm; {args.method} knows no single weights.")
    outliers = 0.45 if args.outliers is None else args.outliers
    for name, value in (("outliers", outliers), ("sensitive", sensitive)):
        if not 0 <= value <= 50:
            raise UsageError(f"--{name} {value:g}: expected a share between 0 and 50 percent.")
    if args.out.is_dir():
        raise ConvertError(f"{args.out} is a folder; -o names the file to write, NAME.sq.gguf.")
    check_place(args.out)
    if args.bpw is not None and args.plan:
        check_place(args.plan)
    if args.model.exists() and args.out.exists() and args.model.samefile(args.out):
        raise ConvertError(f"{args.out}: the output would replace the model it is made from.")
    bits = args.bits or 4
    quantizes = bits != 16
    options = Options(
        model=args.model,
        out=args.out,
        bits=bits,
        outliers=outliers if quantizes else 0.0,
        sensitive=sensitive if quantizes else 0.0,
        method=args.method,
        calibration=args.calibration,
        samples=args.samples,
        seq_len=args.seq_len,
        seed=args.seed,
        device=args.device,
        threads=args.threads,
        workers=args.workers,
        cluster=args.cluster,
        head_bits=args.head_bits or (8 if quantizes else 16),
        config=args.config,
        fisher=args.fisher,
        tune=args.tune,
        bpw=args.bpw,
        plan=args.plan if args.bpw is None else None,
        plan_out=args.plan if args.bpw is not None else None,
        keep_work=args.keep_work,
    )
    if options.config and not options.packed:
        raise UsageError("--config belongs to a packed checkpoint (sq-*.pt); other models have their own.")
    if options.fisher and not (options.measure is FISHER or options.packed):
        raise UsageError("--fisher needs --method squeezellm and 2, 3 or 4 bits; nothing else looks at it.")
    if options.tune and not quantizes:
        raise UsageError("--tune needs 2, 3 or 4 bits: 16 have no tables to tune.")
    if options.tune and options.samples < 2:
        raise UsageError("--tune needs two --samples or more, since it holds some out to judge by.")
    if options.cluster and options.workers > 1:
        raise UsageError("--workers are processes of this machine; with --cluster leave it out.")
    refused: tuple[str, ...] = ()
    reason = ""
    if options.packed:
        refused, reason = _QUANTIZING, f"{args.model.name} is quantized already; it stays as it is."
    elif options.fisher and not options.tune:
        refused, reason = _CALIBRATING, "--fisher takes the place of calibration."
    for name in refused:
        if getattr(args, name) != parser.get_default(name):
            raise UsageError(f"--{name.replace('_', '-')}: {reason}")
    return options


def _check_plan(args: argparse.Namespace) -> None:
    """That --bpw and --plan are alone in what they settle."""
    option = "--bpw" if args.bpw is not None else "--plan"
    for name in ("bits", "outliers", "sensitive"):
        if getattr(args, name) is not None:
            raise UsageError(f"--{name}: {option} settles it for each matrix; leave one of the two out.")
    if args.method in ("kmeans", "rtn") and args.bpw is not None:
        raise UsageError(f"--bpw needs --method guided or squeezellm; {args.method} knows no losses.")
    if args.bpw is not None and not 2 <= args.bpw <= 16:
        raise UsageError(f"--bpw {args.bpw:g}: expected 2 to 16 bits a weight.")


def _set_environment() -> None:
    """Before PyTorch is imported: no network, no warnings of libraries in between, reproducible sums.

    MKL's strict mode makes matrix products the same bits for any number of threads; threads that sleep while
    they wait leave a shared machine to others.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ["MKL_CBWR"] = "AVX2,STRICT"
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    logging.getLogger("gguf").setLevel(logging.ERROR)


def _return_memory() -> None:
    """Has large arrays go back to the system when they are freed.

    The GNU C library would raise its limit for that to 32 MB and keep the pieces, so that a process grows
    beyond what its arrays take at any time, and beyond what --dry-run states.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_MMAP_THRESHOLD, 1 << 22)


def _os_error(error: OSError, out: Path) -> str:
    # numpy's tofile reports a short write without a number
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "requested and" in str(error):
        folder = out.absolute().parent
        return f"The disk is full: {folder}. Free some space; the same command goes on where it stopped."
    what = f"{error.filename}: " if error.filename else ""
    return f"{what}{error.strerror or error}."


def _fail(message: str, status: int) -> int:
    print(f"sq-convert: {message}", file=sys.stderr)
    return status


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(command())
