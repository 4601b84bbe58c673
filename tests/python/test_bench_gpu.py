"""`make bench-gpu` in the emulator, on tiny sizes, so that nothing fails on the machine with the GPU; its
verdicts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "tests" / "bench"
sys.path.insert(0, str(BENCH))
import gpu  # noqa: E402  (tests/bench is a folder of programs)
from page import GPU_HEADING  # noqa: E402


@pytest.fixture
def emulated_program(emulated: Path) -> Path:
    build = ROOT / "build" / "tests"
    subprocess.run(
        ("cmake", "--build", build, "--target", "emulated_bench_gpu"), check=True, capture_output=True
    )
    return emulated.parent / "emulated_bench_gpu"


def bench(program: Path, plugin: Path, model: Path, folder: Path) -> tuple[dict[str, Any], str]:
    page = folder / "page.md"
    page.write_text(f"# Benchmarks\n\nby others\n\n{GPU_HEADING}\n\nof before\n")
    command = [BENCH / "gpu.py", "--program", program, "--plugin", plugin, "--model", model, "--tiny"]
    command += ["--seconds", 500, "--json", folder / "gpu.json", "--out", page]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, *map(str, command)], check=True, env=environment, capture_output=True)
    found: dict[str, Any] = json.loads((folder / "gpu.json").read_text())
    return found, page.read_text()


def test_every_row_is_measured(
    emulated_program: Path, emulated: Path, stories4: Path, tmp_path: Path
) -> None:
    found, page = bench(emulated_program, emulated, stories4, tmp_path)
    assert set(found["absent"]) == {f"PyTorch, {name}" for name in gpu.SHAPES}, "which needs a GPU"
    assert page.startswith("# Benchmarks\n\nby others\n\n## ")
    assert page.count(GPU_HEADING) == 1
    assert "of before" not in page
    for heading, n_rows in (
        ("Whole models", 2),
        ("Attention of all layers at the end of 128 tokens, ms", 2),
        ("Single matrices", 4),
        ("Variants", 15),
    ):
        rows = page.split(f"### {heading}\n")[1].split("###")[0].strip().splitlines()
        assert len(rows) == n_rows + 2, heading
        assert len({row.count("|") for row in rows}) == 1, heading
    divergences = gpu.all_divergences(found)
    assert len(divergences) == 2
    assert all(0 <= kl < 1e-5 for kl in divergences.values())


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    path = tmp_path / "made" / "gpu.json"
    m = gpu.Measurement(path, 500)
    m.part("matrices", lambda left: gpu.run_json(["false"], left))
    m.part("models", lambda left: gpu.run_json(["sleep", "9"], left / 5000))
    m.part("device", lambda left: {"device": "a card", "copy_bytes_per_second": 1e12 * (left > 400)})
    m.deadline = 0
    m.part("variants", lambda left: {"variants": []})
    found = json.loads(path.read_text())
    assert found["device"] == "a card"
    assert "variants" not in found
    page = gpu.section(found)
    assert "1000 GB/s" in page
    assert "Not measured: matrices: exit 1.\n" in page
    assert "Not measured: models: Command '['sleep', '9']' timed out" in page
    assert "Not measured: variants: no time was left.\n" in page
    assert "### Single matrices" not in page


def test_verdicts() -> None:
    """Of figures made up for this: each target kept by one model, missed by the other."""

    def model(name: str, bits: int, token: float, prompt: float, memory: float) -> dict[str, Any]:
        times = {"1": token, "2": token, "4": token, "8": 1.5 * token, "9": 1.5 * token + 1e-3 * (bits == 3)}
        return {
            "model": name,
            "bits": bits,
            "weight_bytes_per_token": 3e9,
            "kv_bytes_per_position": 0,
            "generation": times,
            "prompt": {"tokens": 2048, "seconds": prompt},
            "memory_bytes": memory,
            "model_bytes": 5e9,
            "n_ctx": 4096,
        }

    found = {
        "copy_bytes_per_second": 4e12,
        "models": [
            model("LLaMA-7B", 4, 0.9e-3, 0.1, 5.2e9),
            model("LLaMA-7B", 3, 1.2e-3, 0.2, 6.1e9),
        ],
        "PyTorch, LLaMA-7B": {"token": 3e-3, "prompt_products": 0.07},
        "matrices": [
            {"n_out": 1, "n_in": 1, "bits": 4, "kept": kept, "tokens": {"1": 1 + 0.05 * kept}}
            for kept in (False, True)
        ],
        "divergence, a file": {"good": 1e-6, "bad": 1e-4},
    }
    verdicts = {what: verdict for what, _, _, verdict in gpu.verdict_rows(found)}
    kept = {what for what, verdict in verdicts.items() if verdict == "met"}
    common = {"8 sequences over one"}
    of_four = {"of a copy's bandwidth", "of PyTorch in FP16", "prompt, of cuBLAS's products"}
    of_four |= {"9 sequences over 8", "memory beside weights and cache"}
    assert kept == {f"LLaMA-7B, {bits} bits: {what}" for bits in (4, 3) for what in common} | {
        f"LLaMA-7B, 4 bits: {what}" for what in of_four
    } | {"kept weights of single matrices, the worst", "good: KL divergence"}
    missed = {f"LLaMA-7B, 3 bits: {what}" for what in of_four} | {"bad: KL divergence"}
    assert set(verdicts) - kept == missed | {"LLaMA-7B, 3 bits: memory with 4096 tokens"}
