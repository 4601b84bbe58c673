"""llama.cpp's importance matrix: of each matrix, the mean square of each of its inputs over a text.

usage: importance.py MODEL TEXT N_SEQUENCES SEQ_LEN OUT.npz
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sq_convert.arch import Kind
from sq_convert.calibrate import build_model, choose_sequences, fill
from sq_convert.checkpoint import check_tensors, open_checkpoint


def main() -> None:
    model_path, text, out = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[5])
    checkpoint = open_checkpoint(model_path)
    tensors = check_tensors(checkpoint)
    n, seq_len = int(sys.argv[3]), int(sys.argv[4])
    sequences = choose_sequences(checkpoint.tokenizer(), text.name, text.read_bytes(), n, seq_len, 0)
    model = build_model(checkpoint, "cpu")
    fill(dict(model.named_parameters()), checkpoint, tensors)
    modules = dict(model.named_modules())
    sums: dict[str, Any] = {}

    def watch(name: str) -> Any:
        def add(_: Any, inputs: Any) -> None:
            squares = inputs[0].flatten(0, -2).square().sum(0)
            sums[name] = sums.get(name, 0) + squares

        return add

    for tensor in tensors:
        if tensor.kind is Kind.MATRIX:
            module = modules[tensor.in_model[0].removesuffix(".weight")]
            module.register_forward_pre_hook(watch(tensor.name))
    with torch.no_grad():
        for sequence in sequences:
            model(torch.from_numpy(sequence[None]), use_cache=False, logits_to_keep=1)
    with out.open("wb") as file:
        np.savez(file, **{name: (sum_ / sequences.size).numpy() for name, sum_ in sums.items()})


if __name__ == "__main__":
    main()
