"""Write the beginning of a text that is so many tokens of a model.

usage: first_tokens.py MODEL TEXT N_TOKENS OUT.txt
"""

from __future__ import annotations

import sys
from pathlib import Path

from sq_convert.checkpoint import open_checkpoint


def main() -> None:
    model, text, n_tokens, out = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    found = open_checkpoint(model).tokenizer()(
        text.read_text("utf-8"), add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    if len(found["input_ids"]) < n_tokens:
        sys.exit(f"{text}: expected {n_tokens} tokens or more, found {len(found['input_ids'])}.")
    out.write_text(text.read_text("utf-8")[: found["offset_mapping"][n_tokens - 1][1]], "utf-8")


if __name__ == "__main__":
    main()
