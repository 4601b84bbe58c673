"""Continues a text.

usage: generate.py MODEL.sq.gguf PROMPT
"""

import sys

from sqllm import Model

path, prompt = sys.argv[1:]
with Model(path) as model:
    print(prompt, end="")
    for piece in model.stream(prompt, max_tokens=100, temperature=0.7, seed=1):
        print(piece, end="", flush=True)
    print()

    # How well the model expected the prompt: the mean log-probability of a token.
    scores = model.log_probabilities(model.tokenize(prompt))
    print(f"log-probability of the prompt: {scores.mean():.2f} a token", file=sys.stderr)
