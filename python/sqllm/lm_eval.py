"""The command ``lm_eval`` of lm-evaluation-harness, with the model class `sqllm` registered.

    python -m sqllm.lm_eval --model sqllm --model_args path=model.sq.gguf --tasks TASKS

The harness finds models of other packages only after they were imported, so its own command does not know it.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the harness's command on the arguments of this one."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError:
        sys.exit("sqllm.lm_eval: lm-evaluation-harness is missing: pip install 'sqllm[lm-eval]'")
    from . import harness  # noqa: F401  # registers itself

    cli_evaluate()


if __name__ == "__main__":
    main()
