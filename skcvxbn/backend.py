"""Where training runs: the array library and the device, chosen before any work."""

from __future__ import annotations

import gc
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skcvxbn.arrays import Array, Rows

_DEVICE = re.compile(r"cpu|cuda(:\d+)?")


@dataclass(frozen=True)
class Backend:
    """An array library and a device.

    Attributes
    ----------
    name : {"numpy", "torch"}
        The library.
    device : str
        "cpu", "cuda" or "cuda:k".
    rows : Rows
        How to sum over the training rows.
    """

    name: str = "numpy"
    device: str = "cpu"
    rows: Rows = field(default_factory=Rows, compare=False)

    def array(self, x: NDArray[Any]) -> Array:
        """Return a NumPy array as one of this backend, in its precision: a copy unless this is NumPy."""
        return x if self.name == "numpy" else _torch().tensor(np.ascontiguousarray(x), device=self.device)


NUMPY = Backend()


def resolve(backend: str, device: str | None) -> Backend:
    """Return the backend that two parameters of an estimator name.

    Parameters
    ----------
    backend : {"numpy", "torch"}
        The array library.
    device : str or None
        "cpu", "cuda" or "cuda:k". None is "cpu" for NumPy, and for PyTorch the GPU if there is one.

    Returns
    -------
    Backend
        The backend, which is there to be used.

    Raises
    ------
    ValueError
        If the device is none of these, not one of NumPy, or if there is no such GPU.
    ImportError
        If PyTorch is not installed.

    Examples
    --------
    >>> from skcvxbn.backend import resolve
    >>> resolve("numpy", None).device
    'cpu'
    """
    if device is not None and _DEVICE.fullmatch(device) is None:
        raise ValueError(
            "The 'device' parameter must be None, 'cpu', 'cuda' or 'cuda:k' with the number k of a GPU. "
            f"Got {device!r} instead."
        )
    if backend == "numpy":
        if device not in (None, "cpu"):
            raise ValueError(
                f"backend='numpy' computes on the processor only. Got device={device!r}; for a GPU choose "
                "backend='torch'."
            )
        return NUMPY
    torch = _torch()
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = device or ("cuda" if n_gpus else "cpu")
    if device != "cpu" and int(device.removeprefix("cuda").lstrip(":") or 0) >= n_gpus:
        found = f"finds {n_gpus} GPU(s)" if n_gpus else "finds no CUDA GPU"
        raise ValueError(
            f"device={device!r} is not available: PyTorch {torch.__version__} {found}. It takes an NVIDIA "
            "GPU, its driver and a build of PyTorch for CUDA (pip install torch; a version ending in +cpu "
            "has none); choose device='cpu' otherwise."
        )
    return Backend("torch", device)


@contextmanager
def within_memory(backend: Backend) -> Iterator[None]:
    """Say what it takes, and release all there is, where the block runs out of the device's memory."""
    try:
        yield
    except Exception as error:
        if backend.name == "numpy" or not isinstance(error, _torch().cuda.OutOfMemoryError):
            raise
        # The frames of the work hold its tables for as long as anybody holds the error.
        traceback.clear_frames(error.__traceback__)
        message = str(error).partition("\n")[0]
        gc.collect()
        _torch().cuda.empty_cache()
        raise MemoryError(
            f"Training on device={backend.device!r} takes more memory than there is. PyTorch says: {message} "
            "Remedies: a smaller max_neurons; fewer directions of the data, with SVDTruncation; float32 "
            "instead of float64; device='cpu'."
        ) from None


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "backend='torch' requires PyTorch, which is not installed: pip install torch"
        ) from error
    return torch
