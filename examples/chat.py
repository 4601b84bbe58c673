"""A chat that remembers what was said.

usage: chat.py MODEL.sq.gguf     (one line a question; the end of the input ends the chat)
"""

import sys

from sqllm import Model

messages = [{"role": "system", "content": "You are a helpful assistant. Answer in one or two sentences."}]
with Model(sys.argv[1]) as model:
    for line in sys.stdin:
        messages.append({"role": "user", "content": line.strip()})
        answer = ""
        for piece in model.chat(messages, stream=True, max_tokens=200):
            print(piece, end="", flush=True)
            answer += piece
        print()
        messages.append({"role": "assistant", "content": answer})
