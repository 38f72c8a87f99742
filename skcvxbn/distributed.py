"""Training on rows that are spread over processes: data parallel, with `torch.distributed`.

Everything training asks of the rows is a sum or a largest value over them (`skcvxbn.arrays.Rows`), so each
process keeps its own. All of them take the same decisions on the same numbers, in step, and end with the same
network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from array_api_compat import is_torch_array
from numpy.typing import NDArray

from skcvxbn.arrays import Array, Rows, like, to_numpy, whole_numbers

__all__ = ["ProcessRows", "refuse_shards", "sharded_rows", "training_rows"]

_ALL_ROWS = Rows()
_ROWS: ContextVar[Rows] = ContextVar("rows", default=_ALL_ROWS)
# Where tensors have to be for the processes to talk about them.
_PLACES = {"gloo": "cpu", "nccl": "cuda"}


class ProcessRows(Rows):
    """Rows of which every process of a group has some.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup or None
        The processes; None is all of them.
    """

    shared = True

    def __init__(self, group: Any = None) -> None:
        self._torch = _initialised_torch()
        self._group = group
        self._distributed = self._torch.distributed
        self.rank, self._size = self._distributed.get_rank(group), self._distributed.get_world_size(group)
        if self.rank < 0:
            raise ValueError("sharded_rows requires a group that this process belongs to.")
        self._place = _PLACES.get(self._distributed.get_backend(group))

    def total(self, x: Array) -> Array:
        """Sum over the rows of all processes, given the sum over those at hand."""
        return self._reduced(x, self._distributed.ReduceOp.SUM)

    def largest(self, x: Array) -> Array:
        """Elementwise maximum over the rows of all processes, given that over those at hand."""
        return self._reduced(x, self._distributed.ReduceOp.MAX)

    def gathered(self, M: Array) -> Array:
        """Rows of all processes below one another, given those at hand."""
        torch, sizes = self._torch, self.everyone(int(M.shape[0]))
        part = self._sent(M)
        # Tables of one size and of numbers are all that every backend can gather.
        padded = part.new_zeros((max(sizes), *part.shape[1:]), dtype=_number(torch, part.dtype))
        padded[: part.shape[0]] = part
        parts = [torch.empty_like(padded) for _ in sizes]
        self._talk(self._distributed.all_gather, parts, padded)
        whole = torch.cat([table[:size] for table, size in zip(parts, sizes, strict=True)])
        return self._received(whole.to(part.dtype), M)

    def own(self, M: Array, n_rows: int) -> Array:
        """Those at hand, which are so many, of the rows of all processes."""
        first = sum(self.everyone(n_rows)[: self.rank])
        return M[first : first + n_rows, :]

    def count(self, x: Array) -> int:
        """Return the number of rows of all processes, given an array of those at hand."""
        return int(self.total(np.array(x.shape[0])))

    def numbers(self, n_rows: int) -> NDArray[np.float64]:
        """Random whole numbers, of shape (n_numbers, n_rows): other ones in every process."""
        return whole_numbers(n_rows, self.rank)

    def everyone(self, value: Any) -> list[Any]:
        """What every process has, in their order, given what this one has: any small object."""
        values = [None] * self._size
        self._talk(self._distributed.all_gather_object, values, value)
        return values

    def past(self, deadline: float) -> bool:
        """Whether the clock of the first process is past a value of ``time.monotonic()`` there."""
        return deadline < np.inf and self.everyone(super().past(deadline))[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let the block, in which processes do not talk, end with an error in all of them if in one."""
        error: Exception | None = None
        try:
            yield
        except Exception as own:  # noqa: BLE001
            error = own
        errors = self.everyone(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for rank, message in enumerate(errors):
            if message is not None:
                raise ValueError(f"Process {rank} of {self._size} stopped with an error. {message}")

    def agree(self, facts: dict[str, Any]) -> None:
        """Refuse facts, by name, that are not the same in every process."""
        first, *others = self.everyone({name: repr(fact) for name, fact in facts.items()})
        for rank, other in enumerate(others, start=1):
            for name, fact in first.items():
                if other[name] != fact:
                    raise ValueError(
                        f"The processes that share the rows must agree about {name}: process 0 has "
                        f"{fact}, process {rank} has {other[name]}."
                    )

    def _reduced(self, x: Array, operation: Any) -> Array:
        sent = self._sent(x)
        self._talk(self._distributed.all_reduce, sent, operation)
        return self._received(sent, x)

    def _sent(self, x: Array) -> Any:
        """Return a copy that the processes can talk about."""
        tensor = x.clone() if is_torch_array(x) else self._torch.from_numpy(np.array(x))
        tensor = tensor.contiguous()
        return tensor if self._place in (None, tensor.device.type) else tensor.to(self._place)

    def _received(self, tensor: Any, x: Array) -> Array:
        return tensor.to(x.device) if is_torch_array(x) else like(to_numpy(tensor), x)

    def _talk(self, collective: Callable[..., Any], *args: Any) -> None:
        try:
            collective(*args, group=self._group)
        except RuntimeError as error:
            raise RuntimeError(
                f"Training on sharded rows cannot go on in process {self.rank} of {self._size}: another "
                "process ended, or did not answer within the timeout of init_process_group. Its own error, "
                f"if it had one, says why. PyTorch says: {error}"
            ) from error


@contextmanager
def sharded_rows(group: Any = None) -> Iterator[None]:
    """Let estimators that are fitted in the block take the rows they are given for a part of all rows.

    Every process of the group calls ``fit`` with rows of its own, which stay where they are: processes
    exchange sums over rows. All end with the network of all rows, and with the same `objective_`,
    `lower_bound_` and `beta_max_`.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup, default=None
        The processes that share the rows; None is the default group. It is made before, by
        ``torch.distributed.init_process_group``, with "gloo" for processors or "nccl" for GPUs, and a
        ``timeout`` after which a process that does not answer counts as lost.

    Raises
    ------
    RuntimeError
        If there is no process group; from ``fit``, if a process is lost.
    ValueError
        If this process is not in the group; from ``fit``, in every process, if one of them refuses its
        rows, or if they disagree about the parameters, the features or the targets.

    Notes
    -----
    It takes ``backend="torch"`` and ``arrangements="generated"``. Where the exact steps of the solver are
    affordable (few rows, directions and neurons), the whitened rows and the targets of all processes are
    copied to each, which solves the same convex program; with fewer rows than features they are for the
    whitening. An interrupt from the keyboard ends training without a result. For the rest see
    `docs/distributed.md`.

    Examples
    --------
    In every process that ``torchrun`` started (`examples/distributed_fit.py` is the whole program):

    >>> import torch.distributed as dist  # doctest: +SKIP
    >>> dist.init_process_group("gloo")  # doctest: +SKIP
    >>> with sharded_rows():  # doctest: +SKIP
    ...     model.fit(X_shard, y_shard)
    """
    token = _ROWS.set(ProcessRows(group))
    try:
        yield
    finally:
        _ROWS.reset(token)


def training_rows() -> Rows:
    """How to sum over the rows of the fit that begins."""
    return _ROWS.get()


def refuse_shards(name: str) -> None:
    """Refuse to take a part of the rows for all of them."""
    if training_rows().shared:
        raise ValueError(
            f"{name} needs all rows in one process: inside sharded_rows() only ConvexBNRegressor and "
            "ConvexBNClassifier can be fitted."
        )


def _initialised_torch() -> Any:
    try:
        import torch.distributed
    except ImportError as error:
        raise ImportError(
            "sharded_rows requires PyTorch, which is not installed: pip install torch"
        ) from error
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise RuntimeError(
            "sharded_rows requires a process group: call torch.distributed.init_process_group() in every "
            "process first. torchrun starts the processes."
        )
    return torch


def _number(torch: Any, dtype: Any) -> Any:
    return torch.uint8 if dtype == torch.bool else dtype
