"""What every fit shares: from rows and targets to the training problem, from its solution to the network."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_memory

from skcvxbn.arrays import Rows, inner, like, numpy_dtype
from skcvxbn.backend import NUMPY, Backend
from skcvxbn.losses import LossFunction
from skcvxbn.network import BatchNormNetwork
from skcvxbn.recovery import network_to_whitened, recover_network
from skcvxbn.solvers import Problem, Solution
from skcvxbn.solvers.search import QUICK, THOROUGH, affordable_starts, random_starts, search
from skcvxbn.targets import Targets
from skcvxbn.whitening import Whitening, whiten

Floats = NDArray[np.float64]

_STARTS, _FEW_STARTS = 128, 16


@dataclass(frozen=True, eq=False)
class Training:
    """The training problem of given rows, for any weight decay.

    Attributes
    ----------
    X, Y, weight : ndarray
        The distinct rows, their targets and weights, in an order that only their values decide.
    loss : callable
        From targets and weights to the loss.
    whitening : Whitening
        The rows in whitened coordinates.
    offset : ndarray of shape (n_outputs,)
        What was subtracted from the targets, and is to be added to the output.
    problem : Problem
        Problem (N) in these coordinates, with a weight decay of one, in NumPy.
    memory : joblib.Memory
        Where `beta_max` is cached.
    backend : Backend
        Where it is solved.
    """

    X: NDArray[Any]
    Y: Floats
    weight: Floats
    loss: LossFunction
    whitening: Whitening
    offset: Floats
    problem: Problem
    memory: Any
    backend: Backend

    @cached_property
    def beta_max(self) -> float:
        """The smallest weight decay whose optimal network has no neuron."""
        return self._largest_beta(_STARTS)

    @cached_property
    def rough_beta_max(self) -> float:
        """The same by a short search: to compare networks by, and not to tell where the path begins."""
        return self._largest_beta(_FEW_STARTS)

    def _largest_beta(self, n_starts: int) -> float:
        A, problem = self.whitening.A, self.problem
        # All rows of a class may be at a kink at once: in single precision they would not be at the same one.
        constant = replace(problem, A=np.sqrt(self.weight / self.whitening.n_rows)[:, None])
        R = constant.feasible(constant.zero.R)
        return float(self.memory.cache(largest_beta)(A, R, n_starts, self.backend))

    @cached_property
    def placed(self) -> Problem:
        """The problem where it is solved."""
        return self.problem.on(self.backend)

    def at(self, beta: float) -> Problem:
        """Return the problem with a weight decay, where it is solved."""
        return replace(self.placed, beta=float(beta))

    def network(self, solution: Solution) -> BatchNormNetwork:
        """Return the network of a solution, on the features."""
        network = recover_network(solution, self.whitening, self.problem.loss, self.problem.fit_intercept)
        intercept = (network.intercept + self.offset).astype(self.whitening.A.dtype)
        return replace(network, intercept=intercept)

    def objective(self, network: BatchNormNetwork, beta: float) -> float:
        """Training objective of a network, by a forward pass."""
        own = network.objective(self.X, self.Y, 0.0, self.weight, self.loss)
        (value,) = self.backend.rows.totals(np.float64(own))
        return value + 0.5 * beta * network.penalty(self.whitening.n_rows)

    def start(self, network: BatchNormNetwork) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Express a network in whitened coordinates; None where it has other features or outputs."""
        shape = len(network.hidden_weights), len(network.intercept)
        if shape != (len(self.whitening.mean), self.Y.shape[1]) or len(network.bn_weight) == 0:
            return None
        S, V = network_to_whitened(network, self.whitening)
        return S.astype(self.whitening.A.dtype), V.astype(self.whitening.A.dtype)


def prepare(
    X: NDArray[Any],
    targets: Targets,
    weight: Floats,
    *,
    fit_intercept: bool,
    n_components: int | float | None = None,
    shrinkage: float = 0.0,
    memory: Any = None,
    backend: Backend = NUMPY,
) -> Training:
    """Merge equal rows, whiten them and state the training problem.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Finite rows.
    targets : Targets
        Their targets and the loss.
    weight : ndarray of shape (n_samples,)
        Positive weights.
    fit_intercept : bool
        Whether the network has an output bias.
    n_components : int, float or None
        How many of the leading singular directions of the centred rows to keep, as in `SVDTruncation`.
        None keeps all.
    shrinkage : float
        Share of the variance of the standardised features that the coordinates leave out.
    memory : str, object with the joblib.Memory interface or None
        Where the whitened rows and `beta_max` are cached, in NumPy.
    backend : Backend
        Where they are computed, and networks trained.

    Returns
    -------
    Training
        The problem, from which networks for any weight decay are trained.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.targets import regression_targets
    >>> from skcvxbn.training import prepare
    >>> X, y = np.array([[0.0], [1.0], [1.0]]), np.array([0.0, 3.0, 3.0])
    >>> training = prepare(
    ...     X, regression_targets(y, "squared_error", 1.35, 0.5), np.ones(3), fit_intercept=True
    ... )
    >>> len(training.X), training.weight.tolist(), training.offset.tolist()
    (2, [1.0, 2.0], [2.0])
    """
    memory = check_memory(memory)
    X, Y, weight = _distinct_rows(X, targets.Y, weight)
    if n_components is not None:
        X, whitening = memory.cache(whiten)(X, weight, 0.0, backend).truncated(X, weight, n_components)
    if n_components is None or shrinkage > 0:
        whitening = memory.cache(whiten)(X, weight, shrinkage, backend)
    rows = backend.rows
    offset = _mean(Y, weight, rows) if fit_intercept and targets.translates else np.zeros(Y.shape[1])
    loss = replace(targets.loss(Y - offset, weight), rows=rows)
    problem = Problem(whitening.A, loss, 1.0, fit_intercept)
    return Training(X, Y, weight, targets.loss, whitening, offset, problem, memory, backend)


def largest_beta(A: NDArray, target: NDArray, n_starts: int = _STARTS, backend: Backend = NUMPY) -> float:
    """`beta_max` in whitened coordinates: ``max ||target^T (A s)_+||`` over unit ``s``."""
    rows = backend.rows
    size = math.sqrt(*rows.totals(inner(target, target)))
    if size == 0:
        return 0.0
    A, R = backend.array(A), backend.array((target / size).astype(A.dtype))
    # The maxima at a target are few and wide: on large data a short search from few points finds them.
    thorough = n_starts >= _STARTS and affordable_starts(A, THOROUGH, rows=rows) >= n_starts
    stages = THOROUGH if thorough else QUICK
    n_starts = min(n_starts, affordable_starts(A, stages, rows=rows))
    random = random_starts(A.shape[1], R.shape[1], n_starts, np.random.RandomState(0))
    S, U = (like(M.astype(numpy_dtype(A)), A) for M in random)
    return size * search(A, R, S, U, stages=stages, rows=rows).largest


def positive_rows(X: NDArray[Any], y: NDArray[Any], weight: Floats) -> tuple[NDArray[Any], ...]:
    """Remove the rows of weight zero, which no quantity of the fit may depend on."""
    keep = weight > 0
    return (X, y, weight) if keep.all() else (X[keep], y[keep], weight[keep])


def _distinct_rows(X: NDArray[Any], Y: Floats, weight: Floats) -> tuple[NDArray[Any], Floats, Floats]:
    """Merge equal rows, adding their weights, and put the rows in an order that only their values decide.

    Two fits whose rows differ in order, or in being repeated instead of weighted, then solve the same
    problem to the last bit. Without this they would agree within the tolerance only: descent amplifies
    rounding, and near the optimum many networks are as good.
    """
    fingerprints = np.empty(len(X), dtype="V16")
    step = max(2**20 // X.shape[1], 1)
    for start in range(0, len(X), step):
        # Adding zero turns -0.0, which equals 0.0 but has other bits, into 0.0.
        rows = zip(X[start : start + step] + 0.0, Y[start : start + step] + 0.0, strict=True)
        for i, (x, y) in enumerate(rows, start):
            fingerprints[i] = blake2b(x.tobytes() + y.tobytes(), digest_size=16).digest()
    _, first, inverse = np.unique(fingerprints, return_index=True, return_inverse=True)
    return X[first], Y[first], np.bincount(inverse, weights=weight).astype(np.float64)


def _mean(Y: Floats, weight: Floats, rows: Rows) -> Floats:
    sums, (n_rows,) = rows.total(weight @ Y), rows.totals(weight.sum())
    highest, lowest = rows.largest(np.stack([Y.max(axis=0), -Y.min(axis=0)]))
    # Clipped, because rounding can put the mean of a constant beside it: its targets are then exactly zero.
    return np.clip(sums / n_rows, -lowest, highest)
