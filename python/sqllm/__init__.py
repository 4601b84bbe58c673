"""Run SqueezeLLM models (``NAME.sq.gguf``) from Python.

from sqllm import Model

with Model("model.sq.gguf") as model:
    print(model.chat([{"role": "user", "content": "What is gravity?"}]))
"""

from .error import Error, Status
from .generate import Sampling, Token
from .model import Model, ModelInfo

__all__ = ["Error", "Model", "ModelInfo", "Sampling", "Status", "Token"]
