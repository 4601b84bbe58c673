"""The handles of libsq, owned: a model with its one session."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._ffi import check, ffi, lib
from .error import Error, Status


class Session:
    """An open model and its timeline of tokens.

    `lock` is held by whoever needs several calls to see the same timeline. Each call into the session
    also takes a lock of its own, so that never two threads are inside, not even after a second Ctrl-C.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None,
        ctx: int | None,
        kv: str | None,
        cpu: str | None,
        exact: bool,
        device: str | None,
        gpu_layers: int | None,
    ) -> None:
        self.lock = threading.RLock()
        self._inside = threading.Lock()
        error = ffi.new("sq_error *")

        cpu_name = ffi.NULL if cpu is None else ffi.new("char[]", cpu.encode())
        kv_name = ffi.NULL if kv is None else ffi.new("char[]", kv.encode())
        device_name = ffi.NULL if device is None else ffi.new("char[]", device.encode())
        options = ffi.new("sq_model_options *", {"cpu": cpu_name, "exact": exact, "device": device_name})
        options.gpu_layers = _count("gpu_layers", gpu_layers)
        options.n_ctx = _count("ctx", ctx)
        options.kv = kv_name
        model = ffi.new("sq_model **")
        check(lib.sq_model_open(os.fsencode(path), options, model, error), error)
        self._model: Any = ffi.gc(model[0], lib.sq_model_close)

        session_options = ffi.new("sq_session_options *")
        session_options.n_ctx = _count("ctx", ctx)
        session_options.n_threads = _count("threads", threads)
        session_options.kv = kv_name
        session = ffi.new("sq_session **")
        check(lib.sq_session_create(self._model, session_options, session, error), error)
        # The destructor refers to the model, so that the model closes last.
        self._session = ffi.gc(session[0], lambda session, _model=self._model: lib.sq_session_free(session))
        self.n_ctx = int(lib.sq_session_n_ctx(self._session))
        self.n_threads = int(lib.sq_session_n_threads(self._session))
        self.n_vocab = int(self.info().n_vocab)

    def close(self) -> None:
        """Lets go of the handles. Their memory is freed when no call in another thread uses them."""
        self._session = self._model = None

    @property
    def model(self) -> Any:
        """The ``sq_model *``; it stays open while a reference to it is kept."""
        return _open(self._model)

    @property
    def handle(self) -> Any:
        """The ``sq_session *``; it stays alive while a reference to it is kept."""
        return _open(self._session)

    def info(self) -> Any:
        """An ``sq_model_info``."""
        info = ffi.new("sq_model_info *")
        lib.sq_model_get_info(self.model, info)
        return info

    def sync(self, tokens: Any, *, lookup: bool = False) -> None:
        """Makes the timeline exactly `tokens` (an ``sq_token[]``), with or without prompt lookup."""
        handle = self.handle
        lib.sq_session_set_lookup(handle, lookup)
        n_timeline = ffi.new("size_t *")
        lib.sq_session_tokens(handle, n_timeline)

        def call(session: Any, error: Any) -> int:
            return int(lib.sq_session_sync(session, tokens, len(tokens), ffi.NULL, error))

        if len(tokens) == n_timeline[0] + 1:
            self._call(call, lambda: False)  # one more token is soon computed
        else:
            self._call_long(call)

    def sample(self, sampler: Any) -> int:
        """The token that an ``sq_sampler *`` draws next."""
        token = ffi.new("sq_token *")
        self._call(
            lambda session, error: int(lib.sq_session_sample(session, sampler, token, error)), lambda: False
        )
        return int(token[0])

    def log_probability(self, token: int) -> float:
        """Natural logarithm of the probability that `token` is next."""
        with self._inside:
            logits = lib.sq_session_logits(self.handle)
            if not logits:
                raise Error(Status.UNSUPPORTED, "the GPU failed to hand over its logits; use device='cpu'")
            return float(lib.sq_log_probability(logits, self.n_vocab, token))

    def append(self, tokens: Sequence[int], logits: NDArray[np.float32]) -> None:
        """Appends `tokens`; after each, the logits of the next go to `logits` [n_tokens, n_vocab]."""
        ids = ffi.new("sq_token[]", list(tokens))
        out = ffi.from_buffer("float[]", logits, require_writable=True)
        self._call_long(lambda session, error: int(lib.sq_session_append(session, ids, len(ids), out, error)))

    def truncate(self, n_tokens: int) -> None:
        """Forgets all but the first `n_tokens` tokens."""
        with self._inside:
            lib.sq_session_truncate(self.handle, n_tokens)

    def _call(self, call: Callable[[Any, Any], int], abandoned: Callable[[], bool]) -> None:
        error = ffi.new("sq_error *")
        handle = self.handle
        with self._inside:
            status = call(handle, error)
            # A cancellation meant for a call that still waits for its turn stops this one: repeat it.
            while status == Status.CANCELLED and not abandoned():
                status = call(handle, error)
        check(status, error)

    def _call_long(self, call: Callable[[Any, Any], int]) -> None:
        """Runs `call` so that Ctrl-C stops it.

        Python handles signals in the main thread and between its own instructions only, so there the call
        runs in a helper thread while the main thread waits.
        """
        if threading.current_thread() is not threading.main_thread():
            self._call(call, lambda: False)
            return
        handle = self.handle
        done: Future[None] = Future()
        interrupted = threading.Event()

        def run() -> None:
            try:
                self._call(call, interrupted.is_set)
                done.set_result(None)
            except BaseException as error:  # handed to the waiting thread
                done.set_exception(error)

        worker = threading.Thread(target=run, name="sqllm")
        try:
            worker.start()
            done.result()
        except BaseException:
            interrupted.set()
            while worker.is_alive():
                if not done.done():
                    lib.sq_session_cancel(handle)
                worker.join(0.01)
            raise


def _open(handle: Any) -> Any:
    if handle is None:
        raise Error(Status.ARGUMENT, "the model is closed; open it again with sqllm.Model(path)")
    return handle


def _count(name: str, value: int | None) -> int:
    """A positive option, or 0 for the library's default."""
    if value is None:
        return 0
    if not 0 < value < 2**32:
        raise Error(Status.ARGUMENT, f"{name}: expected a positive number, found {value}")
    return int(value)
