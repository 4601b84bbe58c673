"""What else a GPU of PyTorch can do here."""

from __future__ import annotations

import functools
import warnings

from .errors import first_line


@functools.cache
def runs_triton(device_type: str) -> bool:
    """Whether Triton's kernels, in ``*_triton.py``, run on such a device. It comes with PyTorch where that
    is built for NVIDIA's GPUs on Linux; to compile them it also needs a C compiler and Python's headers."""
    if device_type != "cuda":
        return False
    try:
        from triton.runtime import driver

        return bool(driver.active.get_current_target().backend == "cuda")
    except Exception as error:  # whatever Triton, or what it calls, makes of what is missing
        warnings.warn(f"Without Triton fitting tables takes longer ({first_line(error)}).", stacklevel=2)
        return False
