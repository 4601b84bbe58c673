"""libsq through cffi: `ffi`, `lib`, and `check`, which turns a status into an exception.

The declarations are read from the very header that was installed beside the library, so the two cannot
differ. Nothing is compiled when the package is imported.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cffi import FFI

from .error import Error, Status


def _find(name: str) -> Path:
    """The installed file `name`. An editable install has two folders: the sources and what was built."""
    import sqllm

    for folder in sqllm.__path__:
        path = Path(folder) / name
        if path.exists():
            return path
    raise ImportError(
        f"{name} is not installed with the package sqllm; install it again (in a clone: `make setup`)"
    )


def _declarations(header: str) -> str:
    """What cffi's parser takes: the header without the parts for C++ and without preprocessor lines."""
    header = re.sub(r"#ifdef __cplusplus.*?#endif", "", header, flags=re.DOTALL)
    return re.sub(r"^#.*$", "", header, flags=re.MULTILINE)


ffi: Any = FFI()
ffi.cdef(_declarations(_find("sq.h").read_text(encoding="utf-8")))
lib: Any = ffi.dlopen(str(_find("libsq.so")))


def check(status: int, error: Any) -> None:
    """Raises `Error` with the message in `error` (an ``sq_error *``) unless `status` is SQ_OK."""
    if status != lib.SQ_OK:
        raise Error(Status(status), ffi.string(error.message).decode("utf-8", "replace"))


def text(pointer: Any) -> str:
    """A zero-terminated C string as str."""
    return str(ffi.string(pointer).decode("utf-8", "replace"))
