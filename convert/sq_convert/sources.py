"""What a file keeps of its source beside the weights: the tokenizer, and the JSON files that --dequantize restores."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from . import writer
from .checkpoint import Checkpoint
from .errors import ConvertError

SOURCE_KEY = "squeezellm.source"  # JSON: {"config.json": {...}, "tokenizer_config.json": {...}, ...}
TOKENIZER_KEY = gguf.Keys.Tokenizer.HF_JSON  # the text of tokenizer.json, GGUF's own key for it
_MACHINE_KEYS = ("is_local", "local_files_only", "name_or_path", "_name_or_path", "_model_name_or_path",
                 "transformers_version")  # fmt: skip


@dataclass
class TokenizerFiles:
    """The model's tokenizer, and its files as transformers saves them."""

    tokenizer: Any
    json_text: str
    config: dict[str, Any]

    def write(self, file: gguf.GGUFWriter, checkpoint: Checkpoint) -> None:
        """Adds the keys of the tokenizer and of the source's JSON files."""
        source = {
            "config.json": without_machine(checkpoint.config.to_dict()),
            "tokenizer_config.json": self.config,
            **checkpoint.source(),
        }
        writer.add_text(file, TOKENIZER_KEY, self.json_text)
        writer.add_json(file, SOURCE_KEY, source)


def read_tokenizer(checkpoint: Checkpoint) -> TokenizerFiles:
    """The checkpoint's tokenizer; ConvertError where transformers reads none or it is no fast one."""
    tokenizer = checkpoint.tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ConvertError(
                f"{checkpoint.path}: its tokenizer ({type(tokenizer).__name__}) has no tokenizer.json form, which is "
                "what the converter understands."
            )
        text = json.dumps(json.loads(path.read_text(encoding="utf-8")), ensure_ascii=False, separators=(",", ":"))
        config = json.loads((Path(folder) / "tokenizer_config.json").read_text(encoding="utf-8"))
    return TokenizerFiles(tokenizer, text, without_machine(config))


def without_machine(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration less what tells of the machine it was read on."""
    return {key: value for key, value in config.items() if key not in _MACHINE_KEYS}
