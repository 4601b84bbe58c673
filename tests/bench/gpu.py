"""Measures libsq_cuda on the GPU that is there, PyTorch in FP16 beside it; writes JSON and the GPU's section
of docs/BENCHMARKS.md. Called by `make bench-gpu`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from sqllm import Model
from tables import GPU_HEADING, table, without_gpu
from truth import kl_divergence, run

HERE = Path(__file__).parent
_SHAPE = {"n_layers": 32, "n_embd": 4096, "n_heads": 32}
SHAPES = {
    "LLaMA-7B": {**_SHAPE, "n_ff": 11008, "n_kv_heads": 32, "n_vocab": 32000},
    "Llama-3-8B": {**_SHAPE, "n_ff": 14336, "n_kv_heads": 8, "n_vocab": 128256},
}
DEFAULT_SHAPE = "8 x 2"  # of gpu_gemv: warps x blocks a processor

Json = dict[str, Any]


def run_json(command: list[str]) -> Json:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    found: Json = json.loads(done.stdout)
    return found


def peers() -> Json:
    """PyTorch's seconds by shape; or why there are none."""
    import torch

    if not torch.cuda.is_available():
        return {"absent": f"PyTorch {torch.__version__} finds no GPU"}
    program = str(HERE / "gpu_peer.py")
    return {name: run_json([sys.executable, program, json.dumps(shape)]) for name, shape in SHAPES.items()}


def divergence(path: Path, exact: bool) -> float:
    """Mean KL divergence of the GPU's logits from the CPU's exact ones on the README's beginning."""
    with Model(path) as model:
        ids = model.tokenize((HERE.parents[1] / "README.md").read_text())[:512]
    half = len(ids) // 2
    pieces = [half, *[1] * (len(ids) - half)]
    reference = run(path, ids, pieces, "auto", "f16")
    return float(
        kl_divergence(reference, run(path, ids, pieces, "auto", "f16", exact=exact, device="cuda")).mean()
    )


def same_codes(a: Json, b: Json) -> bool:
    return all(a[key] == b[key] for key in ("n_out", "n_in", "bits"))


def matrix_rows(found: Json) -> list[list[str]]:
    copy = found["copy_bytes_per_second"]
    rows = []
    for m in found["matrices"]:
        rate = m["bytes"] / m["tokens"]["1"]
        dense = next(d for d in found["matrices"] if not d["kept"] and same_codes(d, m))
        best = min(m["shapes"], key=m["shapes"].__getitem__)
        by_tokens = [f"{m['tokens'][t] / m['tokens']['1']:.2f}" for t in ("2", "4", "8", "9", "16")]
        rows.append(
            [
                f"{m['n_out']} × {m['n_in']}",
                str(m["bits"]),
                "0.45 %" if m["kept"] else "–",
                f"{rate * 1e-9:.0f}",
                f"{100 * rate / copy:.0f} %",
                f"{100 * (m['tokens']['1'] / dense['tokens']['1'] - 1):+.0f} %" if m["kept"] else "–",
                *by_tokens,
                f"{best}: {m['shapes'][DEFAULT_SHAPE] / m['shapes'][best]:.2f} ×",
            ]
        )
    return rows


def model_rows(found: Json, peer: Json) -> list[list[str]]:
    copy, rows = found["copy_bytes_per_second"], []
    for m in found["models"]:
        token, prompt = m["generation"]["1"], m["prompt"]["seconds"]
        share = (m["weight_bytes_per_token"] + 160 * m["kv_bytes_per_position"]) / token / copy
        theirs = peer.get(m["model"])
        rows.append(
            [
                m["model"],
                str(m["bits"]),
                f"{1 / token:.0f}",
                f"{100 * share:.0f} %",
                f"{theirs['token'] / token:.2f} ×" if theirs else "–",
                *(f"{m['generation'][t] / token:.2f}" for t in ("2", "4", "8", "9")),
                f"{m['prompt']['tokens'] / prompt:.0f}",
                f"{100 * theirs['prompt_products'] / prompt:.0f} %" if theirs else "–",
                f"{m['memory_bytes'] * 1e-9:.2f}",
            ]
        )
    return rows


def section(found: Json) -> str:
    matrices = ["n_out × n_in", "bits", "kept", "GB/s", "of a copy", "kept weights cost"]
    matrices += [f"{t} tokens" for t in (2, 4, 8, 9, 16)] + ["best shape of launch"]
    models = ["", "bits", "tok/s", "of a copy's bandwidth", "of PyTorch in FP16", "2", "4", "8", "9 tokens"]
    models += ["prompt of 2048, tok/s", "of cuBLAS's products", "GPU memory, GB"]
    absent = found["peer"].get("absent")
    lines = [
        f"{GPU_HEADING}\n",
        f"Made by `make bench-gpu` on one {found['device']}. A copy on the device moves "
        f"{found['copy_bytes_per_second'] * 1e-9:.0f} GB/s, read and written. Weights are random, 0.45 % "
        "of them kept; medians of warm runs. Columns by tokens: time of so many at once over that of one.\n",
        f"PyTorch was not measured: {absent}.\n" if absent else "",
        "### Whole models\n",
        table(models, model_rows(found, found["peer"])),
        "### Single matrices\n",
        table(matrices, matrix_rows(found)),
        "### KL divergence from the CPU's exact path\n",
        table(["model", "nats a token"], [[name, f"{kl:.1e}"] for name, kl in found["divergence"].items()]),
    ]
    return "\n".join(line for line in lines if line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", required=True)
    parser.add_argument("--model", type=Path, action="append", default=[])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found = run_json([args.program])
    found["peer"] = peers()
    found["divergence"] = {model.name: divergence(model, exact=False) for model in args.model}
    found["divergence"] |= {f"{model.name}, exact": divergence(model, exact=True) for model in args.model}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(found, indent=1))
    text = section(found)
    args.out.write_text(f"{without_gpu(args.out.read_text())}\n{text}")
    print(text)


if __name__ == "__main__":
    main()
