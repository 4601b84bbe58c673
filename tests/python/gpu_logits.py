"""Logits that the plugin for GPUs gives, in a process of its own: LD_LIBRARY_PATH there says which plugin.

usage: gpu_logits.py MODEL OUT.npy PIECES EXACT KV [TOKEN ...]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from truth import Logits, run


def run_with_plugin(
    plugin: Path, path: Path, ids: list[int], pieces: list[int], exact: bool, kv: str
) -> Logits:
    """As `truth.run`, with all layers on the device of the plugin in a folder."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits.npy"
        command = [sys.executable, __file__, str(path), str(out), json.dumps(pieces), str(int(exact)), kv]
        subprocess.run(
            [*command, *map(str, ids)], check=True, env={**os.environ, "LD_LIBRARY_PATH": str(plugin)}
        )
        logits: Logits = np.load(out)
    return logits


if __name__ == "__main__":
    path, out, pieces, exact, kv, *ids = sys.argv[1:]
    ids_of = [int(i) for i in ids]
    np.save(out, run(Path(path), ids_of, json.loads(pieces), "auto", kv, exact=exact == "1", device="cuda"))
