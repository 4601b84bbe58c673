"""What a file keeps beside the weights: the tokenizer, and the JSON files that --dequantize restores."""

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
from .template import ChatTable, NoChat, end_of_turn_ids, reduce_template, verify_chat
from .tokenizer import TokenizerData, export_tokenizer
from .verify import verify_tokenizer

SOURCE_KEY = "squeezellm.source"  # JSON: {"config.json": {...}, "tokenizer_config.json": {...}, ...}
TOKENIZER_KEY = gguf.Keys.Tokenizer.HF_JSON  # the text of tokenizer.json; GGUF's own key for it
_MACHINE_KEYS = ("is_local", "local_files_only", "name_or_path", "_name_or_path", "_model_name_or_path",
                 "transformers_version")  # fmt: skip


@dataclass(frozen=True)
class TokenizerSource:
    """A tokenizer, verified against the C runtime's, and its files as transformers saves them."""

    tokenizer: Any
    data: TokenizerData
    chat: ChatTable | NoChat
    verdict: str  # what verification found, a sentence
    json_text: str  # tokenizer.json
    config: dict[str, Any]  # tokenizer_config.json

    def write(self, file: gguf.GGUFWriter, checkpoint: Checkpoint) -> None:
        """Adds the keys of the tokenizer, of the chat table and of the source's JSON files."""
        self.data.write(file)
        self.chat.write(file)
        source = {
            "config.json": without_machine(checkpoint.config.to_dict()),
            "tokenizer_config.json": self.config,
            **checkpoint.source(),
        }
        writer.add_text(file, TOKENIZER_KEY, self.json_text)
        writer.add_json(file, SOURCE_KEY, source)


def read_tokenizer(checkpoint: Checkpoint) -> TokenizerSource:
    """The checkpoint's tokenizer; ConvertError where the C runtime would tokenize differently."""
    tokenizer = checkpoint.tokenizer()
    data = export_tokenizer(tokenizer, checkpoint.config.vocab_size, _eos_ids(checkpoint))
    n_tokens = verify_tokenizer(tokenizer, data)
    chat = verify_chat(tokenizer, data, reduce_template(tokenizer))
    verdict = f"the C tokenizer agrees with transformers on {n_tokens} tokens of difficult text"
    if isinstance(chat, ChatTable):
        verdict += "; the chat template is reduced to a table."
    elif chat.reason:
        verdict += f"; sq-run will refuse to chat, since {chat.reason}."
    else:
        verdict += "; there is no chat template."
    data = data.with_stops(end_of_turn_ids(tokenizer, chat))
    return TokenizerSource(tokenizer, data, chat, verdict, *_saved_files(tokenizer, checkpoint))


def _saved_files(tokenizer: Any, checkpoint: Checkpoint) -> tuple[str, dict[str, Any]]:
    """tokenizer.json, without white space, and tokenizer_config.json."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ConvertError(
                f"{checkpoint.path}: its tokenizer ({type(tokenizer).__name__}) has no tokenizer.json form, "
                "which is what the converter understands."
            )
        parts = json.loads(path.read_text(encoding="utf-8"))
        config = json.loads((Path(folder) / "tokenizer_config.json").read_text(encoding="utf-8"))
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":")), without_machine(config)


def _eos_ids(checkpoint: Checkpoint) -> list[int]:
    """Tokens that end an answer, as the model's configurations say."""
    generation = checkpoint.source().get("generation_config.json", {})
    ids: list[int] = []
    for value in (checkpoint.config.eos_token_id, generation.get("eos_token_id")):
        ids += value if isinstance(value, list) else [value] if isinstance(value, int) else []
    return ids


def without_machine(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration less what tells of the machine it was read on."""
    return {key: value for key, value in config.items() if key not in _MACHINE_KEYS}
