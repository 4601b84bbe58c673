"""Quality per bit of what sq-convert makes, beside llama.cpp's types: the table of docs/QUALITY.md.

usage: quality.py --texts FOLDER --smollm2 SMOLLM2.gguf --work FOLDER --out FILE.md --peer-python PYTHON
                  [ROW...]

The model is SmolLM2-135M, dithered (dither.py). Calibrated on the first 96 × 512 tokens of FOLDER/valid.txt,
measured on the first 8 × 2048 tokens of FOLDER/test.txt against the unquantized model. Only the matrices of
the blocks are quantized, embedding and head are F16. llama.cpp's files are read back through `gguf` by
sq-convert into files of 16 bits, and measured as ours are.

A ROW is a name of rows.py; without any, all are made. A finished row stays in the work folder's results and
in every table, as long as its commands stay the same; after a change of the converter remove it there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
from rows import ROWS, Row

HERE = Path(__file__).parent
SCRIPTS = Path(sys.executable).parent
PEER = HERE.parent / "bench" / "peer.py"
BEGIN, END = "<!-- made by `make quality`: -->", "<!-- made by `make quality`. -->"
SEQ_LEN, WINDOW = 512, 2048


class Quality:
    """The files in the work folder, each made once."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.work: Path = args.work
        self.model = self.make("dithered.gguf", HERE / "dither.py", args.smollm2)
        cut = [HERE / "first_tokens.py", self.model, args.texts / "valid.txt", args.samples * SEQ_LEN]
        self.calibration = self.make(f"calibration-{args.samples}.txt", *cut)
        reference = ["-m", "sq_convert.reference", self.model, args.texts / "test.txt", "--ctx", WINDOW]
        self.reference = self.make(f"test-{args.windows}.ref", *reference, "--windows", args.windows, "-o")

    def make(self, name: str, *words: object) -> Path:
        """The file that a Python program writes, to the path that is its last argument."""
        out = self.work / name
        if not out.exists():
            print(f"making {name}", flush=True)
            partial = out.with_name(f"partial-{name}")
            run(sys.executable, *words, partial)
            partial.rename(out)
        return out

    def measure(self, row: Row) -> None:
        """Fills the row's result unless that is there."""
        if self.result(row):
            return
        print(f"{row.name}: quantizing", flush=True)
        file, bits = self.ours(row) if row.options else self.peer(row)
        print(f"{row.name}: measuring", flush=True)
        found = json.loads(run(SCRIPTS / "sq-eval", file, self.reference, "--exact", "--json"))
        file.unlink()
        found |= {"name": row.name, "commands": self.commands(row)}
        found["bits_per_weight"] = bits or found["bits_per_weight"]
        self.result_file(row).write_text(json.dumps(found, indent=1))

    def commands(self, row: Row) -> list[str]:
        """What a result depends on."""
        return [*map(str, self.convert_words(row)), f"{self.args.samples}, {self.args.windows} windows"]

    def convert_words(self, row: Row) -> list[object]:
        """What the row is made by."""
        if not row.options:
            return ["llama.cpp", row.name]
        samples = ("--samples", self.args.samples, "--seq-len", SEQ_LEN)
        return [*row.options, "--head-bits", 16, "--calibration", self.calibration, *samples]

    def ours(self, row: Row) -> tuple[Path, None]:
        out = self.work / "ours.sq.gguf"  # for every row, which shares what the ones before have left
        run(SCRIPTS / "sq-convert", self.model, "-o", out, "--keep-work", *self.convert_words(row))
        return out, None

    def peer(self, row: Row) -> tuple[Path, float]:
        """llama.cpp's file as one of 16 bits, and the bits a weight that it had."""
        moments = [HERE / "importance.py", self.model, self.calibration, self.args.samples, SEQ_LEN]
        importance = self.make(f"importance-{self.args.samples}.npz", *moments)
        quantized, out = self.work / f"{row.name}.gguf", self.work / f"{row.name}.sq.gguf"
        run(self.args.peer_python, PEER, "quantize", self.model, quantized, row.name, importance)
        run(SCRIPTS / "sq-convert", quantized, "-o", out, "--bits", 16)
        bits = true_bits(quantized)
        quantized.unlink()
        return out, bits

    def result_file(self, row: Row) -> Path:
        return self.work / "results" / f"{row.name}.json"

    def result(self, row: Row) -> Any:
        """What sq-eval said of it, and more; None where it is not finished."""
        path = self.result_file(row)
        found = json.loads(path.read_text()) if path.exists() else {}
        return found if found.get("commands") == self.commands(row) else None


def true_bits(path: Path) -> float:
    """Bits a weight of the blocks' matrices."""
    matrices = [t for t in gguf.GGUFReader(path).tensors if t.name.startswith("blk.") and len(t.shape) > 1]
    return float(8 * sum(t.n_bytes for t in matrices) / sum(t.n_elements for t in matrices))


def run(*words: object) -> str:
    """A command's output; ends the program where it fails, after what the command says."""
    done = subprocess.run(list(map(str, words)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def table(found: list[tuple[Row, dict[str, Any]]]) -> str:
    head = "| setting | true bits | KL divergence | ± | median | 99 % | same top token | perplexity |"
    lines = [head, "|" + "---|" * 8]
    for row, r in sorted(found, key=lambda pair: pair[1]["bits_per_weight"]):
        cells = [
            row.label,
            f"{r['bits_per_weight']:.2f}",
            f"{r['kl_divergence']:.4f}",
            f"{r['kl_standard_error']:.4f}",
            f"{r['kl_median']:.4f}",
            f"{r['kl_99_percent']:.3f}",
            f"{100 * r['top1_agreement']:.1f} %",
            f"{r['perplexity']:.2f} ± {r['standard_error']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_table(out: Path, text: str) -> None:
    """Puts the table between the marks of the page; all else in it stays."""
    before, begin, rest = out.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{out}: expected the lines {BEGIN} and {END}, between which the table goes.")
    out.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("texts", "smollm2", "work", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--samples", type=int, default=96, help="sequences to calibrate on (96)")
    parser.add_argument("--windows", type=int, default=8, help="windows to measure on (8)")
    parser.add_argument("rows", nargs="*", choices=[[], *(row.name for row in ROWS)], metavar="ROW")
    args = parser.parse_args()
    missing = [name for name in ("valid.txt", "test.txt") if not (args.texts / name).is_file()]
    if missing:
        sys.exit(
            f"{args.texts} has no {missing[0]}: TEXTS=FOLDER names a folder with valid.txt and test.txt, the "
            "validation and test split of WikiText-2 (Merity et al., the word-level form)."
        )
    (args.work / "results").mkdir(parents=True, exist_ok=True)
    quality = Quality(args)
    for row in ROWS:
        if row.name in (args.rows or [row.name]):
            quality.measure(row)
    finished = [(row, found) for row in ROWS if (found := quality.result(row))]
    what = f"Calibrated on {args.samples} × {SEQ_LEN} tokens, measured on {args.windows} × {WINDOW}.\n\n"
    write_table(args.out, what + table(finished))
    print(table(finished))


if __name__ == "__main__":
    main()
