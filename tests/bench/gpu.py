"""Measures libsq_cuda on the GPU that is there, PyTorch in FP16 beside it; writes JSON and the GPU's section
of docs/BENCHMARKS.md. Called by `make bench-gpu`. What fails or comes too late is left out with the reason,
and all else is kept."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from page import GPU_HEADING, table, without_gpu

HERE = Path(__file__).parent
_SHAPE = {"n_layers": 32, "n_embd": 4096, "n_heads": 32}
SHAPES = {
    "LLaMA-7B": {**_SHAPE, "n_ff": 11008, "n_kv_heads": 32, "n_vocab": 32000},
    "Llama-3-8B": {**_SHAPE, "n_ff": 14336, "n_kv_heads": 8, "n_vocab": 128256},
}
DEFAULT_SHAPE = "8 x 2"  # of gpu_gemv: warps x blocks a processor

Json = dict[str, Any]


# ---- measuring --------------------------------------------------------------------------------------


class Measurement:
    """Parts measured one after another until a deadline, saved after each."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.deadline = path, time.monotonic() + seconds
        self.found: Json = {"absent": {}}

    def part(self, name: str, work: Callable[[float], Json]) -> None:
        """``work(seconds left)`` adds its figures, or the reason why it has none."""
        begin = time.monotonic()
        try:
            if begin >= self.deadline:
                raise TimeoutError("no time was left")
            self.found |= work(self.deadline - begin)
        except Exception as error:  # whatever it is, what was measured before is worth keeping
            self.found["absent"][name] = str(error).strip()
        print(f"bench-gpu: {name}: {time.monotonic() - begin:.0f} s", file=sys.stderr)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.found, indent=1))


def run_json(command: list[str], seconds: float) -> Json:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}").splitlines()
        raise RuntimeError(lines[-1])
    found: Json = json.loads(done.stdout)
    return found


def peer(name: str, seconds: float) -> Json:
    """PyTorch's seconds of a shape."""
    command = [sys.executable, str(HERE / "gpu_peer.py"), json.dumps(SHAPES[name])]
    return {f"PyTorch, {name}": run_json(command, seconds)}


def divergence(path: Path, exact: bool, plugin: Path, n_tokens: int) -> float:
    """Mean KL divergence of the GPU's logits from the CPU's exact ones on the README's beginning."""
    # Here, so that all else can be measured where the package is not installed.
    from gpu_logits import run_with_plugin
    from sqllm import Model
    from truth import kl_divergence, run

    with Model(path, device="cpu") as model:
        ids = model.tokenize((HERE.parents[1] / "README.md").read_text())[:n_tokens]
    half = len(ids) // 2
    pieces = [half, *[1] * (len(ids) - half)]
    reference = run(path, ids, pieces, "auto", "f16")
    return float(kl_divergence(reference, run_with_plugin(plugin, path, ids, pieces, exact, "f16")).mean())


def divergences(path: Path, plugin: Path, n_tokens: int, _seconds: float) -> Json:
    """With the products that the GPU uses by default, and exactly."""
    names = {False: path.name, True: f"{path.name}, exact"}
    found = {name: divergence(path, exact, plugin, n_tokens) for exact, name in names.items()}
    return {f"divergence, {path.name}": found}


def measure(args: argparse.Namespace) -> Json:
    m = Measurement(args.json, args.seconds)
    program = [args.program, *(["--tiny"] if args.tiny else [])]
    m.part("matrices", partial(run_json, [*program, "matrices"]))
    m.part("models", partial(run_json, [*program, "models"]))
    for name in SHAPES:
        m.part(f"PyTorch, {name}", partial(peer, name))
    for path in args.model:
        m.part(f"divergence, {path.name}", partial(divergences, path, args.plugin, 24 if args.tiny else 512))
    m.part("variants", partial(run_json, [*program, "variants"]))
    return m.found


# ---- the section ------------------------------------------------------------------------------------


def same_codes(a: Json, b: Json) -> bool:
    return all(a[key] == b[key] for key in ("n_out", "n_in", "bits"))


def sparse_cost(m: Json, found: Json) -> float:
    """By how much kept weights make a matrix slower, as a part of the dense one's time."""
    dense = next(d for d in found["matrices"] if not d["kept"] and same_codes(d, m))
    return float(m["tokens"]["1"] / dense["tokens"]["1"] - 1)


def copy_share(m: Json, found: Json) -> float:
    """The bandwidth of a model's generation, its cache's middle length included, over a copy's."""
    n_bytes = m["weight_bytes_per_token"] + 160 * m["kv_bytes_per_position"]
    return float(n_bytes / m["generation"]["1"] / found["copy_bytes_per_second"])


def all_divergences(found: Json) -> dict[str, float]:
    parts = (part for key, part in found.items() if key.startswith("divergence, "))
    return {name: kl for part in parts for name, kl in part.items()}


def matrix_rows(found: Json) -> list[list[str]]:
    copy = found["copy_bytes_per_second"]
    rows = []
    for m in found["matrices"]:
        rate = m["bytes"] / m["tokens"]["1"]
        best = min(m["shapes"], key=m["shapes"].__getitem__)
        by_tokens = [f"{m['tokens'][t] / m['tokens']['1']:.2f}" for t in ("2", "4", "8", "9", "16")]
        rows.append(
            [
                f"{m['n_out']} × {m['n_in']}",
                str(m["bits"]),
                "0.45 %" if m["kept"] else "–",
                f"{rate * 1e-9:.0f}",
                f"{100 * rate / copy:.0f} %",
                f"{100 * sparse_cost(m, found):+.0f} %" if m["kept"] else "–",
                *by_tokens,
                f"{best}: {m['shapes'][DEFAULT_SHAPE] / m['shapes'][best]:.2f} ×",
            ]
        )
    return rows


def model_rows(found: Json) -> list[list[str]]:
    rows = []
    for m in found["models"]:
        token, prompt = m["generation"]["1"], m["prompt"]["seconds"]
        theirs = found.get(f"PyTorch, {m['model']}")
        rows.append(
            [
                m["model"],
                str(m["bits"]),
                f"{1 / token:.0f}",
                f"{100 * copy_share(m, found):.0f} %",
                f"{theirs['token'] / token:.2f} ×" if theirs else "–",
                *(f"{m['generation'][t] / token:.2f}" for t in ("2", "4", "8", "9")),
                f"{m['prompt']['tokens'] / prompt:.0f}",
                f"{100 * theirs['prompt_products'] / prompt:.0f} %" if theirs else "–",
                f"{m['memory_bytes'] * 1e-9:.2f}",
            ]
        )
    return rows


def attention_rows(found: Json) -> list[list[str]]:
    return [
        [m["model"], kv, *(f"{1e3 * seconds:.2f}" for seconds in by_tokens.values())]
        for m in found["models"]
        if m["bits"] == 4
        for kv, by_tokens in m["attention"].items()
    ]


def verdict_rows(found: Json) -> list[list[str]]:
    """Each target, what was found, and whether that keeps it."""
    rows: list[list[str]] = []

    def at_least(what: str, least: float, value: float, unit: str = "×") -> None:
        rows.append(
            [what, f"≥ {least:g} {unit}", f"{value:.3g} {unit}", "met" if value >= least else "missed"]
        )

    def at_most(what: str, most: float, value: float, unit: str = "×") -> None:
        rows.append([what, f"≤ {most:g} {unit}", f"{value:.3g} {unit}", "met" if value <= most else "missed"])

    for m in found.get("models", []):
        name, four = f"{m['model']}, {m['bits']} bits", m["bits"] == 4
        token, batch = m["generation"]["1"], m["generation"]
        at_least(f"{name}: of a copy's bandwidth", 75 if four else 70, 100 * copy_share(m, found), "%")
        theirs = found.get(f"PyTorch, {m['model']}")
        if theirs:
            at_least(f"{name}: of PyTorch in FP16", 3.0 if four else 3.6, theirs["token"] / token)
            products = 100 * theirs["prompt_products"] / m["prompt"]["seconds"]
            at_least(f"{name}: prompt, of cuBLAS's products", 60, products, "%")
        at_most(f"{name}: 8 sequences over one", 1.6, batch["8"] / token)
        at_most(f"{name}: 9 sequences over 8", 1.25, batch["9"] / batch["8"])
        spare = m["memory_bytes"] - m["model_bytes"] - m["n_ctx"] * m["kv_bytes_per_position"]
        at_most(f"{name}: memory beside weights and cache", 300, spare * 1e-6, "MB")
        if m["model"] == "LLaMA-7B" and not four:
            at_most(f"{name}: memory with {m['n_ctx']} tokens", 6, m["memory_bytes"] * 1e-9, "GB")
    costs = [100 * sparse_cost(m, found) for m in found.get("matrices", []) if m["kept"]]
    if costs:
        at_most("kept weights of single matrices, the worst", 6, max(costs), "%")
    for name, kl in all_divergences(found).items():
        at_most(f"{name}: KL divergence", 1e-5, kl, "nat")
    return rows


def section(found: Json) -> str:
    matrices = ["n_out × n_in", "bits", "kept", "GB/s", "of a copy", "kept weights cost"]
    matrices += [f"{t} tokens" for t in (2, 4, 8, 9, 16)] + ["best shape of launch"]
    models = ["", "bits", "tok/s", "of a copy's bandwidth", "of PyTorch in FP16", "2", "4", "8", "9 tokens"]
    models += ["prompt of 2048, tok/s", "of cuBLAS's products", "GPU memory, GB"]
    lines = [f"{GPU_HEADING}\n"]
    if "device" in found:
        lines.append(
            f"Made by `make bench-gpu` on one {found['device']}. A copy on the device moves "
            f"{found['copy_bytes_per_second'] * 1e-9:.0f} GB/s, read and written. Weights are random, 0.45 % "
            "of them kept; medians of warm runs. Columns by tokens: time of so many at once over one's. "
            "Memory is that of weights, cache and workspace, without what CUDA itself takes.\n"
        )
    lines += [f"Not measured: {name}: {reason}.\n" for name, reason in found["absent"].items()]
    if "models" in found:
        tokens = found["models"][0]["attention"]["f16"]
        lines += ["### Whole models\n", table(models, model_rows(found))]
        lines += [f"### Attention of all layers at the end of {found['models'][0]['n_ctx']} tokens, ms\n"]
        lines += [table(["", "cache", *(f"{t} tokens" for t in tokens)], attention_rows(found))]
    if "matrices" in found:
        lines += ["### Single matrices\n", table(matrices, matrix_rows(found))]
    if "variants" in found:
        rows = [[v["what"], v["unit"], f"{v['value']:.4g}"] for v in found["variants"]]
        lines += ["### Variants\n", table(["what", "unit", "found"], rows)]
    lines += ["### Targets\n", table(["what", "target", "found", ""], verdict_rows(found))]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", required=True)
    parser.add_argument("--plugin", type=Path, required=True, help="the folder of libsq_cuda.so")
    parser.add_argument("--model", type=Path, action="append", default=[])
    parser.add_argument("--seconds", type=float, required=True, help="what is not begun by then is left out")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to test this program")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    text = section(measure(args))
    args.out.write_text(f"{without_gpu(args.out.read_text())}\n{text}")
    print(text)


if __name__ == "__main__":
    main()
