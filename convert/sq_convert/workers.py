"""Where matrices are quantized: here, in other processes of this machine, or by an existing Dask cluster.

A matrix is one task. What it takes travels to the worker in the task and its result back, so that workers
need this package and nothing else, no folder that all can reach. A matrix is the same bytes wherever it is
made by the same version of numpy on the same kind of processor.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from .calibrate import gpu_memory
from .errors import ConvertError
from .quantize import Recipe, quantize_matrix

CONNECT_SECONDS = 10

Parts = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Task:
    """What quantize_matrix takes; one object, since joblib would leave arrays with a single Dask worker."""

    values: NDArray[np.float32]
    measured: NDArray[np.float32] | None
    recipe: Recipe
    threads: int
    torch_device: str | None

    def run(self) -> Parts:
        gpu = gpu_memory("quantizing") if self.torch_device else nullcontext()
        with gpu, threadpool_limits(1, "blas"):  # whose last bits depend on the number of its threads
            return quantize_matrix(self.values, self.measured, self.recipe, self.threads, self.torch_device)


class Workers:
    """``n_workers`` processes, or the workers of the Dask cluster whose scheduler is at ``cluster``."""

    def __init__(self, n_workers: int, cluster: str | None, threads: int) -> None:
        self._n_workers = n_workers
        self._client = _connect(cluster) if cluster else None
        # A Dask worker runs as many tasks at a time as it has threads.
        self.threads = 1 if cluster else max(1, threads // n_workers)

    def run(self, tasks: Iterable[Task]) -> Iterator[Parts]:
        """The results, in order. Few tasks are taken before their turn."""
        if self._client is None and self._n_workers == 1:
            yield from map(Task.run, tasks)
            return
        from joblib import Parallel, delayed, parallel_config

        # Arrays go through pipes: a file in shared memory could find no room there.
        backend: dict[str, Any] = {"backend": "loky", "n_jobs": self._n_workers, "max_nbytes": None}
        if self._client is not None:
            backend = {"backend": "dask", "n_jobs": -1, "client": self._client}
            warnings.filterwarnings("ignore", "Sending large graph")  # a matrix is large
        try:
            with parallel_config(**backend):
                parallel = Parallel(return_as="generator", batch_size=1)
                yield from parallel(delayed(Task.run)(task) for task in tasks)
        except BrokenExecutor:
            raise ConvertError(
                "A worker process was killed, for want of memory perhaps. The same command goes on where it "
                "stopped; fewer --workers take less memory."
            ) from None

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


def _connect(address: str) -> Any:
    """A client of the cluster, whose workers have this package."""
    try:
        from distributed import Client
    except ImportError:
        raise ConvertError("--cluster needs Dask: pip install 'sqllm[cluster]'.") from None
    try:
        client: Any = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConvertError(f"--cluster {address}: no Dask scheduler answers there ({error}).") from None
    try:
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
    except TimeoutError:
        client.close()
        raise ConvertError(
            f"--cluster {address}: the scheduler has no workers; start some: dask worker {address}"
        ) from None
    return client
