"""Checkpoints to convert: a Hugging Face folder of safetensors, or a GGUF file; read tensor by tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .arch import Family, Kind, Tensor, family_of_gguf, family_of_model_type
from .arch.llama import llama3_divisors
from .errors import ConvertError

F16_MAX = 65504.0
_SMALL_FILES = {
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
}  # fmt: skip


class Checkpoint(Protocol):
    """A model as it lies on disk."""

    path: Path
    name: str  # for people: general.name
    family: Family
    config: Any  # a transformers configuration

    def files(self) -> list[Path]:
        """Every file that the result depends on."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor that the checkpoint holds, by the checkpoint's own names."""

    def own_name(self, tensor: Tensor) -> str:
        """What the checkpoint calls a tensor."""

    def read_raw(self, tensor: Tensor) -> NDArray[np.float32]:
        """The tensor in f32, rows in Hugging Face's order."""

    def tokenizer(self) -> Any:
        """A transformers tokenizer."""

    def source(self) -> dict[str, Any]:
        """Further JSON files of the checkpoint by name, kept for --dequantize."""


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a folder or a file, reading no weights.

    Raises ConvertError where it is neither, or damaged, or of an architecture that is not supported.
    """
    if path.is_dir():
        return SafetensorsCheckpoint(path)
    if path.is_file():
        return GgufCheckpoint(path)
    raise ConvertError(f"{path}: no such file or folder. MODEL is a Hugging Face folder or a .gguf file.")


def check_tensors(checkpoint: Checkpoint) -> list[Tensor]:
    """The model's tensors; ConvertError unless the checkpoint holds each in its right shape, and no other."""
    tensors = checkpoint.family.tensors(checkpoint.config)
    shapes = checkpoint.shapes()
    missing = [name for name in map(checkpoint.own_name, tensors) if name not in shapes]
    if missing:
        raise ConvertError(
            f"{checkpoint.path}: {_count(missing, 'tensor is', 'tensors are')} missing: {_some(missing)}. "
            "The checkpoint is incomplete, or its configuration belongs to another one."
        )
    for tensor in tensors:
        name = checkpoint.own_name(tensor)
        if shapes[name] != tensor.shape:
            raise ConvertError(
                f"{checkpoint.path}: {name} has shape {list(shapes[name])}; the configuration implies "
                f"{list(tensor.shape)}."
            )
    known = set(map(checkpoint.own_name, tensors))
    unknown = [name for name in shapes if name not in known and not checkpoint.family.ignored(name)]
    if unknown:
        raise ConvertError(
            f"{checkpoint.path}: {_count(unknown, 'tensor has', 'tensors have')} no place in this "
            f"architecture: {_some(unknown)}. Left out, the model would compute something else."
        )
    return tensors


def read_tensor(checkpoint: Checkpoint, tensor: Tensor) -> NDArray[np.float32]:
    """The tensor in f32, contiguous and writable; finite, and where f16 will store it within its range."""
    values = np.require(checkpoint.read_raw(tensor), np.float32, ("C", "W"))
    largest = float(np.max(np.abs(values))) if values.size else 0.0  # NaN if any value is
    name = checkpoint.own_name(tensor)
    if not np.isfinite(largest):
        raise ConvertError(
            f"{checkpoint.path}: {name} holds a value that is no finite number; it is damaged."
        )
    if tensor.kind is not Kind.VECTOR and largest > F16_MAX:
        raise ConvertError(
            f"{checkpoint.path}: {name} holds {largest:g}; the file's f16 values end at {F16_MAX:.0f}."
        )
    return values


class SafetensorsCheckpoint:
    """A Hugging Face folder: config.json, model.safetensors or its shards, tokenizer files."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoConfig

        self.path = path
        self.name = path.resolve().name
        raw = read_json(
            path / "config.json", f"{path} is no Hugging Face model folder: it has no config.json."
        )
        if "quantization_config" in raw:
            raise ConvertError(
                f"{path}: the model is quantized already; convert the original, unquantized checkpoint."
            )
        self.family = family_of_model_type(str(raw.get("model_type", "")))
        try:
            self.config = AutoConfig.from_pretrained(path, local_files_only=True)
            self.family.check(self.config)
        except ConvertError:
            raise
        except Exception as error:  # transformers raises whatever a strange value leads to
            raise ConvertError(
                f"{path / 'config.json'}: transformers refuses it: {first_line(error)}"
            ) from error
        self._shards = self._find_shards()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._shard_of: dict[str, Path] = {}
        for shard in self._shards:
            self._index(shard)

    def files(self) -> list[Path]:
        small = [path for path in self.path.iterdir() if path.name in _SMALL_FILES and path.is_file()]
        return sorted(small) + self._shards

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._shapes

    def own_name(self, tensor: Tensor) -> str:
        return tensor.source

    def read_raw(self, tensor: Tensor) -> NDArray[np.float32]:
        import torch
        from safetensors import safe_open

        with safe_open(self._shard_of[tensor.source], framework="pt") as shard:
            values: NDArray[np.float32] = shard.get_tensor(tensor.source).to(torch.float32).numpy()
        return values

    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.path, local_files_only=True)
        except Exception as error:
            raise ConvertError(
                f"{self.path}: transformers reads no tokenizer from it: {first_line(error)}"
            ) from error

    def source(self) -> dict[str, Any]:
        path = self.path / "generation_config.json"
        return {path.name: read_json(path, "")} if path.is_file() else {}

    def _find_shards(self) -> list[Path]:
        single, index = self.path / "model.safetensors", self.path / "model.safetensors.index.json"
        if index.is_file():
            weights = read_json(index, "").get("weight_map")
            if not isinstance(weights, dict) or not weights:
                raise ConvertError(f"{index}: no weight_map in it; download the file again.")
            shards = [self.path / str(name) for name in sorted(set(weights.values()))]
        elif single.is_file():
            shards = [single]
        elif any(self.path.glob("*.bin")) or any(self.path.glob("*.pt*")):
            raise ConvertError(
                f"{self.path}: the weights are pickles, which are never executed here; convert them to "
                "safetensors first (transformers: save_pretrained)."
            )
        else:
            raise ConvertError(
                f"{self.path}: no model.safetensors and no model.safetensors.index.json in it."
            )
        missing = [shard.name for shard in shards if not shard.is_file() or shard.parent != self.path]
        if missing:
            raise ConvertError(
                f"{self.path}: {_count(missing, 'shard is', 'shards are')} missing: {_some(missing)}; "
                "the download is incomplete."
            )
        return shards

    def _index(self, shard: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(shard, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    piece = file.get_slice(name)
                    if piece.get_dtype() not in ("F64", "F32", "F16", "BF16"):
                        raise ConvertError(
                            f"{shard}: {name} is of type {piece.get_dtype()}; expected F32, F16 or BF16. The "
                            "model is quantized already: convert the original."
                        )
                    self._shapes[name] = tuple(piece.get_shape())
                    self._shard_of[name] = shard
        except (SafetensorError, OSError, ValueError) as error:
            raise ConvertError(f"{shard}: damaged or no safetensors file: {first_line(error)}") from error


class GgufCheckpoint:
    """A GGUF file of a supported architecture; its own quantization, if any, is decoded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        reader = read_gguf(path)
        if reader.get_field("squeezellm.version"):
            raise ConvertError(f"{path} is quantized by SqueezeLLM already; --dequantize turns it back.")
        self.name = gguf_string(reader, "general.name") or path.stem
        self.family = family_of_gguf(gguf_string(reader, "general.architecture"))
        # The reader itself is not kept: it holds an object for every token and merge.
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.config = self._load_config(reader)
        self.family.check(self.config)

    def files(self) -> list[Path]:
        return [self.path]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(int(n) for n in reversed(t.shape)) for name, t in self._tensors.items()}

    def own_name(self, tensor: Tensor) -> str:
        return tensor.name

    def read_raw(self, tensor: Tensor) -> NDArray[np.float32]:
        from gguf import quants

        stored = self._tensors[tensor.name]
        try:
            values = quants.dequantize(stored.data, stored.tensor_type)
        except NotImplementedError as error:
            raise ConvertError(
                f"{self.path}: {tensor.name} is of type {stored.tensor_type.name}, which the gguf package "
                "cannot decode."
            ) from error
        values = np.asarray(values, np.float32).reshape(tensor.shape)
        return _deinterleave(values, tensor.rotary_heads) if tensor.rotary_heads else values

    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        from .tokenizer import repair_gguf_tokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self.path.parent, gguf_file=self.path.name, local_files_only=True
            )
        except Exception as error:
            raise ConvertError(
                f"{self.path}: transformers reads no tokenizer from it: {first_line(error)}"
            ) from error
        repair_gguf_tokenizer(tokenizer, self.path)
        return tokenizer

    def source(self) -> dict[str, Any]:
        return {}

    def _load_config(self, reader: Any) -> Any:
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(
                self.path.parent, gguf_file=self.path.name, local_files_only=True
            )
        except Exception as error:
            raise ConvertError(
                f"{self.path}: transformers reads no configuration from it: {first_line(error)}"
            ) from error
        config.architectures = [self.family.model_class]
        config.attention_bias = any(".attn_" in name and name.endswith(".bias") for name in self._tensors)
        config.mlp_bias = any(".ffn_" in name and name.endswith(".bias") for name in self._tensors)
        config.tie_word_embeddings = "output.weight" not in self._tensors
        config.rope_parameters = self._rope_parameters(reader)
        return config

    def _rope_parameters(self, reader: Any) -> dict[str, Any]:
        """Rope scaling, which transformers does not read from GGUF."""
        arch = self.family.gguf_name
        base = {"rope_theta": float(gguf_number(reader, f"{arch}.rope.freq_base") or 10000.0)}
        scaling = gguf_string(reader, f"{arch}.rope.scaling.type") or "none"
        if "rope_freqs.weight" in self._tensors:
            return base | self._llama3_parameters(base["rope_theta"])
        if scaling == "none":
            return base | {"rope_type": "default"}
        if scaling == "linear":
            return base | {
                "rope_type": scaling,
                "factor": float(gguf_number(reader, f"{arch}.rope.scaling.factor")),
            }
        return base | {"rope_type": scaling}  # which the family refuses by name

    def _llama3_parameters(self, theta: float) -> dict[str, Any]:
        """What llama.cpp folded into rope_freqs: published models differ in the factor alone."""
        stored = np.asarray(self._tensors["rope_freqs.weight"].data, np.float32).reshape(-1)
        rope = {
            "rope_theta": theta,
            "rope_type": "llama3",
            "factor": round(float(stored.max()), 4),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        if not np.allclose(llama3_divisors(rope, len(stored)), stored, rtol=1e-4):
            raise ConvertError(
                f"{self.path}: rope_freqs.weight is not Llama 3's rope scaling, the only one supported here."
            )
        return rope


def _deinterleave(values: NDArray[np.float32], n_heads: int) -> NDArray[np.float32]:
    """Rows of each head from llama.cpp's order (0, d/2, 1, d/2 + 1, …) to Hugging Face's (0, 1, 2, …)."""
    shape = values.shape
    pairs = values.reshape(n_heads, shape[0] // n_heads // 2, 2, *shape[1:])
    rows: NDArray[np.float32] = pairs.swapaxes(1, 2).reshape(shape)
    return rows


# ---- small readers -----------------------------------------------------------------------------


def read_gguf(path: Path) -> Any:
    """A gguf.GGUFReader; ConvertError where the file is damaged or none."""
    from gguf import GGUFReader

    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise ConvertError(f"{path}: no GGUF file: it starts with {magic!r}, expected b'GGUF'.")
        return GGUFReader(path)
    except ConvertError:
        raise
    except Exception as error:  # the reader indexes and decodes whatever the file says
        raise ConvertError(f"{path}: the GGUF file is damaged or cut short: {first_line(error)}") from error


def gguf_string(reader: Any, key: str) -> str:
    """A string of the file's metadata, "" where there is none."""
    field = reader.get_field(key)
    value = field.contents() if field else ""
    return value if isinstance(value, str) else ""


def gguf_number(reader: Any, key: str) -> float:
    """A number of the file's metadata, 0 where there is none."""
    field = reader.get_field(key)
    value = field.contents() if field else 0
    return value if isinstance(value, int | float) else 0


def read_json(path: Path, absent: str) -> dict[str, Any]:
    """A JSON object from a file; ConvertError with ``absent`` where there is no file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConvertError(absent) from None
    except (OSError, ValueError) as error:
        raise ConvertError(f"{path}: not readable as JSON: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise ConvertError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    text = str(error).strip().splitlines()
    return (text[0] if text else "") or type(error).__name__


def _count(items: list[str], one: str, many: str) -> str:
    return f"1 {one}" if len(items) == 1 else f"{len(items)} {many}"


def _some(items: list[str]) -> str:
    return ", ".join(items[:3]) + (", …" if len(items) > 3 else "")
