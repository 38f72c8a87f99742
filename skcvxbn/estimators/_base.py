"""What the estimators share: their parameters, and training from validated rows to fitted attributes."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from skcvxbn._sklearn import Interval, StrOptions
from skcvxbn.arrangements import enumerate_arrangements, given_arrangements, sampled_arrangements
from skcvxbn.certificates import prove
from skcvxbn.losses import LossFunction
from skcvxbn.network import BatchNormNetwork
from skcvxbn.path import largest_beta
from skcvxbn.recovery import network_to_whitened, recover_network
from skcvxbn.solvers import Options, Problem, Solution, solve
from skcvxbn.whitening import Whitening, whiten

Floats = NDArray[np.float64]

# Proofs of rank 8 and more end with bounds that say little, whatever the time (docs/certificate.md).
_LARGEST_PROVABLE_RANK = 10

# Weight decay as a share of the one that leaves no neuron, when the user chooses none.
DEFAULT_BETA_RATIO = 0.01


class NetworkEstimator(BaseEstimator):
    """Base of the estimators whose `fit` sets `network_`, or nothing."""

    @contextmanager
    def _unchanged_on_failure(self) -> Iterator[None]:
        """Leave the estimator as it was, fitted or not, when the block raises."""
        before = self.__dict__.copy()
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _forward(self, X: Any) -> NDArray[Any]:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return self.network_.forward(X)


class ConvexBNEstimator(NetworkEstimator):
    """Base of the batch-norm networks trained to a stated gap."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "beta": [Interval(Real, 0.0, np.inf, closed="neither"), None],
        "beta_ratio": [Interval(Real, 0.0, np.inf, closed="neither")],
        "fit_intercept": ["boolean"],
        "arrangements": [StrOptions({"generated", "sampled", "enumerated"}), "array-like"],
        "n_arrangements": [Interval(Integral, 1, None, closed="left")],
        "max_neurons": [Interval(Integral, 1, None, closed="left"), None],
        "solver": [StrOptions({"auto", "cvxpy"})],
        "tol": [Interval(Real, 0.0, np.inf, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "max_time": [Interval(Real, 0.0, None, closed="neither"), None],
        "search_starts": [Interval(Integral, 1, None, closed="left")],
        "certificate": [StrOptions({"estimated", "exact"})],
        "certificate_max_time": [Interval(Real, 0.0, None, closed="neither")],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        *,
        beta: float | None = None,
        beta_ratio: float = DEFAULT_BETA_RATIO,
        fit_intercept: bool = True,
        arrangements: Any = "generated",
        n_arrangements: int = 500,
        max_neurons: int | None = None,
        solver: str = "auto",
        tol: float = 1e-4,
        max_iter: int = 20,
        max_time: float | None = None,
        search_starts: int = 512,
        certificate: str = "estimated",
        certificate_max_time: float = 60.0,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.beta = beta
        self.beta_ratio = beta_ratio
        self.fit_intercept = fit_intercept
        self.arrangements = arrangements
        self.n_arrangements = n_arrangements
        self.max_neurons = max_neurons
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.max_time = max_time
        self.search_starts = search_starts
        self.certificate = certificate
        self.certificate_max_time = certificate_max_time
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose

    def _train(
        self,
        X: NDArray[Any],
        Y: Floats,
        weight: Floats,
        loss: LossFunction,
        *,
        translates: bool,
        single_output: bool,
    ) -> None:
        """Train on rows `X` of positive weight, with targets `Y` of shape (n_samples, n_outputs).

        `translates` says whether adding a constant to targets and outputs changes nothing.
        """
        deadline = math.inf if self.max_time is None else time.monotonic() + self.max_time
        X, Y, weight = _distinct_rows(X, Y, weight)
        rng = check_random_state(self.random_state)
        patterns = self._patterns_of_rows(X, weight, rng)

        whitening = whiten(X, weight)
        if patterns is None and not self._generates:
            patterns = enumerate_arrangements(whitening.A)

        mean = _mean(Y, weight) if self.fit_intercept and translates else np.zeros(Y.shape[1])
        problem = Problem(whitening.A, loss(Y - mean, weight), 1.0, self.fit_intercept)
        beta_max = largest_beta(whitening.A, problem.feasible(problem.zero.R))
        problem = replace(problem, beta=float(self.beta_ratio * beta_max if self.beta is None else self.beta))

        self._check_provable(whitening.rank, Y.shape[1])
        options = self._options(rng, deadline)
        solution = solve(
            problem,
            options,
            solver=self.solver,
            patterns=patterns,
            complete=isinstance(self.arrangements, str) and self.arrangements == "enumerated",
            start=self._start(whitening, Y.shape[1]),
        )
        if self.certificate == "exact" and solution.certificate != "exact":
            solution = prove(problem, solution, options, max_time=self.certificate_max_time)
        network = recover_network(solution, whitening, problem.loss, self.fit_intercept)
        network = replace(network, intercept=(network.intercept + mean).astype(whitening.A.dtype))

        self.beta_, self.beta_max_ = problem.beta, float(beta_max)
        self.network_ = network
        self.objective_ = network.objective(X, Y, problem.beta, weight, loss)
        self.lower_bound_ = min(float(solution.lower_bound), self.objective_)
        self.dual_gap_ = self.objective_ - self.lower_bound_
        self.certificate_ = solution.certificate
        self.n_neurons_ = len(network.bn_weight)
        self.n_iter_ = solution.n_iter
        self.rank_ = whitening.rank
        self.singular_values_ = whitening.singular_values
        self.intercept_ = float(network.intercept[0]) if single_output else network.intercept
        if not solution.converged:
            self._warn_not_converged(solution)

    @property
    def _generates(self) -> bool:
        return isinstance(self.arrangements, str) and self.arrangements == "generated"

    def _check_solver(self) -> None:
        """Refuse combinations of parameters that are valid one by one."""
        if self.solver == "cvxpy" and self._generates:
            raise ValueError(
                "solver='cvxpy' solves the convex program over given arrangements: it requires "
                "arrangements='sampled', arrangements='enumerated' or an array of gate vectors of shape "
                "(n_features, n_arrangements). Got arrangements='generated' instead."
            )

    def _check_provable(self, rank: int, n_outputs: int) -> None:
        """Refuse a proof that is impossible or hopeless, before any training."""
        enumerates = isinstance(self.arrangements, str) and self.arrangements == "enumerated"
        if self.certificate != "exact" or (enumerates and n_outputs == 1):
            return
        if n_outputs > 1:
            raise ValueError(
                "certificate='exact' is for one output (one target, or two classes). Got "
                f"{n_outputs} outputs instead; use certificate='estimated'."
            )
        if not self._generates:
            raise ValueError(
                "certificate='exact' is a proof over all arrangements: it requires arrangements='generated' "
                "or 'enumerated'. Over sampled or given arrangements the bound is 'restricted'."
            )
        if rank > _LARGEST_PROVABLE_RANK:
            raise ValueError(
                f"certificate='exact' is for data of rank {_LARGEST_PROVABLE_RANK} at most, since its time "
                f"grows exponentially with the rank. Got rank {rank} instead; keep fewer directions of the "
                "data with SVDTruncation, or use certificate='estimated'."
            )

    def _patterns_of_rows(
        self, X: NDArray[Any], weight: Floats, rng: np.random.RandomState
    ) -> NDArray[np.bool_] | None:
        """Arrangements that are defined by gates in input space."""
        if not isinstance(self.arrangements, str):
            return given_arrangements(X, self.arrangements)
        if self.arrangements == "sampled":
            gates = np.random.default_rng(rng.randint(2**31 - 1))
            return sampled_arrangements(X, weight, self.n_arrangements, gates)
        return None

    def _options(self, rng: np.random.RandomState, deadline: float) -> Options:
        return Options(
            tol=self.tol,
            max_iter=self.max_iter,
            max_neurons=self.max_neurons,
            search_starts=self.search_starts,
            rng=rng,
            verbose=int(self.verbose),
            deadline=deadline,
        )

    def _start(self, whitening: Whitening, n_outputs: int) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Return the network of the last fit in the coordinates of the new data, if it is to be used."""
        network: BatchNormNetwork | None = getattr(self, "network_", None)
        if not self.warm_start or network is None or len(network.bn_weight) == 0:
            return None
        if (len(network.hidden_weights), len(network.intercept)) != (len(whitening.mean), n_outputs):
            return None
        S, V = network_to_whitened(network, whitening)
        return S.astype(whitening.A.dtype), V.astype(whitening.A.dtype)

    def _warn_not_converged(self, solution: Solution) -> None:
        relative_gap = self.dual_gap_ / self.objective_ if self.objective_ > 0 else 0.0
        if "proof is not closed" in solution.message:
            remedies = ["raise certificate_max_time or tol"]
        elif solution.n_iter >= self.max_iter:
            remedies = ["raise max_iter or tol"]
        elif "max_time" in solution.message:
            remedies = ["raise max_time or tol"]
        else:
            remedies = ["raise tol"]
        remedies.append("choose a larger beta")
        if self.max_neurons is not None:
            remedies.insert(1, "raise max_neurons")
        remedies.append("with many features, keep fewer directions of the data with SVDTruncation")
        reason = f" ({solution.message})" if solution.message else ""
        warnings.warn(
            f"{type(self).__name__} with solver={self.solver!r} stopped at a relative gap of "
            f"{relative_gap:.1e}, above tol={self.tol:g}, after {solution.n_iter} of "
            f"max_iter={self.max_iter} rounds{reason}. The network and its stated gap are valid. To close "
            f"the gap, {'; '.join(remedies)}.",
            ConvergenceWarning,
            stacklevel=5,
        )


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


def _mean(Y: Floats, weight: Floats) -> Floats:
    # Clipped, because rounding can put the mean of a constant beside it: its targets are then exactly zero.
    return np.clip(np.average(Y, axis=0, weights=weight), Y.min(axis=0), Y.max(axis=0))
