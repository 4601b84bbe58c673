"""Converts Hugging Face checkpoints and GGUF files to SqueezeLLM models (NAME.sq.gguf)."""

__version__ = "0.1.0"
