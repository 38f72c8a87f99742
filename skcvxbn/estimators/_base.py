"""What the estimators share: their parameters, and training from validated rows to fitted attributes."""

from __future__ import annotations

import math
import time
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from skcvxbn._sklearn import HasMethods, Interval, StrOptions, check_sample_weight, on_host
from skcvxbn.arrangements import enumerate_arrangements, given_arrangements, sampled_arrangements
from skcvxbn.arrays import Rows
from skcvxbn.backend import Backend, resolve
from skcvxbn.certificates import prove
from skcvxbn.distributed import training_rows
from skcvxbn.network import BatchNormNetwork
from skcvxbn.solvers import Options, Solution, solve
from skcvxbn.targets import Targets
from skcvxbn.training import Training, positive_rows, prepare

Floats = NDArray[np.float64]

# Proofs of rank 8 and more end with bounds that say little, whatever the time (docs/certificate.md).
_LARGEST_PROVABLE_RANK = 10

# Weight decay as a share of the one that leaves no neuron, when the user chooses none.
DEFAULT_BETA_RATIO = 0.01
# Shrinkage of the classifiers, when the user leaves the strength of the regularization to the library.
DEFAULT_SHRINKAGE = 0.3


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
        check_is_fitted(self, "network_")
        X = validate_data(self, on_host(X), dtype=[np.float64, np.float32], reset=False)
        return self.network_.forward(X)


class ConvexBNEstimator(NetworkEstimator):
    """Base of the batch-norm networks trained to a stated gap."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "beta": [Interval(Real, 0.0, np.inf, closed="neither"), None],
        "beta_ratio": [Interval(Real, 0.0, np.inf, closed="neither")],
        "shrinkage": [Interval(Real, 0.0, 1.0, closed="left")],
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
        "memory": [str, HasMethods(["cache"]), None],
        "backend": [StrOptions({"numpy", "torch"})],
        "device": [str, None],
        "dtype": [StrOptions({"float32", "float64"}), None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        *,
        beta: float | None = None,
        beta_ratio: float = DEFAULT_BETA_RATIO,
        shrinkage: float | str = 0.0,
        fit_intercept: bool = True,
        arrangements: Any = "generated",
        n_arrangements: int = 500,
        max_neurons: int | None = None,
        solver: str = "auto",
        tol: float = 1e-4,
        max_iter: int = 30,
        max_time: float | None = None,
        search_starts: int = 512,
        certificate: str = "estimated",
        certificate_max_time: float = 60.0,
        warm_start: bool = False,
        memory: Any = None,
        backend: str = "numpy",
        device: str | None = None,
        dtype: str | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.beta = beta
        self.beta_ratio = beta_ratio
        self.shrinkage: Any = shrinkage
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
        self.memory = memory
        self.backend = backend
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose

    def _fit(self, X: NDArray[Any], y: NDArray[Any], weight: Floats, backend: Backend) -> None:
        """Train on validated rows of any weight."""
        deadline = math.inf if self.max_time is None else time.monotonic() + self.max_time
        X, y, weight = positive_rows(X, y, weight)
        targets, weight = self._code(y, weight, backend.rows)
        training = self._prepare(X, targets, weight, backend, shrinkage=self._chosen_shrinkage)
        beta = self.beta_ratio * training.beta_max if self.beta is None else self.beta
        self._train(training, float(beta), deadline)

    @abstractmethod
    def _validate(self, X: Any, y: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Check rows and targets in scikit-learn's words, and note the features."""

    @abstractmethod
    def _code(self, y: NDArray[Any], weight: Floats, rows: Rows) -> tuple[Targets, Floats]:
        """Code targets and weights of rows of positive weight, and set what predictions need of them."""

    @abstractmethod
    def _coded(self, y: NDArray[Any], weight: Floats) -> tuple[Targets, Floats]:
        """Code targets and weights of any rows as those of the last `_code`."""

    def _prepare(
        self,
        X: NDArray[Any],
        targets: Targets,
        weight: Floats,
        backend: Backend,
        *,
        shrinkage: float,
        n_components: int | float | None = None,
    ) -> Training:
        """State the training problem, or refuse it."""
        training = prepare(
            X,
            targets,
            weight,
            fit_intercept=self.fit_intercept,
            n_components=n_components,
            shrinkage=shrinkage,
            memory=self.memory,
            backend=backend,
        )
        self._check_provable(training.whitening.rank, training.Y.shape[1])
        return training

    def _train(self, training: Training, beta: float, deadline: float) -> None:
        """Solve the training problem and set the fitted attributes."""
        rows = training.backend.rows
        rng = rows.everyone(check_random_state(self.random_state))[0]
        patterns = self._patterns(training, rng)
        options = self._options(rng, deadline)
        problem = training.at(beta)
        solution = solve(
            problem,
            options,
            solver=self.solver,
            patterns=patterns,
            complete=self._enumerates,
            start=rows.everyone(self._start(training))[0],
        )
        if self.certificate == "exact" and solution.certificate != "exact":
            solution = prove(problem.host, solution, options, max_time=self.certificate_max_time)

        self.beta_, self.beta_max_ = beta, training.beta_max
        self.network_ = training.network(solution)
        self.objective_ = training.objective(self.network_, beta)
        self.lower_bound_ = min(float(solution.lower_bound), self.objective_)
        self.dual_gap_ = self.objective_ - self.lower_bound_
        self.certificate_ = solution.certificate
        self.n_neurons_ = len(self.network_.bn_weight)
        self.n_iter_ = solution.n_iter
        self.rank_ = training.whitening.rank
        self.singular_values_ = training.whitening.singular_values
        intercept = self.network_.intercept
        self.intercept_ = float(intercept[0]) if self._single_output else intercept
        if not solution.converged:
            self._warn_not_converged(solution)

    @property
    def _dtypes(self) -> Any:
        """Precision to read rows in; of several, the first if it is none of them."""
        return [np.float64, np.float32] if self.dtype is None else np.dtype(self.dtype)

    @property
    def _chosen_shrinkage(self) -> float:
        if self.shrinkage == "auto":
            return DEFAULT_SHRINKAGE if self.beta is None else 0.0
        return float(self.shrinkage)

    @property
    def _generates(self) -> bool:
        return isinstance(self.arrangements, str) and self.arrangements == "generated"

    @property
    def _enumerates(self) -> bool:
        return isinstance(self.arrangements, str) and self.arrangements == "enumerated"

    @property
    @abstractmethod
    def _single_output(self) -> bool:
        """Whether outputs are numbers instead of rows."""

    def _checked_backend(self) -> Backend:
        """Refuse combinations of parameters that are valid one by one; return where to train."""
        if self.solver == "cvxpy" and self._generates:
            raise ValueError(
                "solver='cvxpy' solves the convex program over given arrangements: it requires "
                "arrangements='sampled', arrangements='enumerated' or an array of gate vectors of shape "
                "(n_features, n_arrangements). Got arrangements='generated' instead."
            )
        if self.backend != "numpy" and not self._generates:
            raise ValueError(
                f"backend={self.backend!r} trains over all arrangements: it requires "
                "arrangements='generated'. For sampled, enumerated or given ones choose backend='numpy'."
            )
        rows = training_rows()
        if rows.shared:
            self._check_shardable()
        return replace(resolve(self.backend, self.device), rows=rows)

    def _checked(
        self, X: Any, y: Any, sample_weight: Any
    ) -> tuple[NDArray[Any], NDArray[Any], Floats, Backend]:
        """Validate parameters and data: those of all processes, where they share the rows."""
        rows = training_rows()
        with rows.together():
            backend = self._checked_backend()
            X, y = self._validate(X, y)
            weight = check_sample_weight(on_host(sample_weight), X)
        self._agree(X, y, rows)
        return X, y, weight, backend

    def _check_shardable(self) -> None:
        """Refuse what needs all rows, or a cache of its own, in every process."""
        required = {"backend": "torch", "certificate": "estimated", "memory": None}
        for name, value in required.items():
            given = getattr(self, name)
            if given != value:
                raise ValueError(f"Sharded rows require {name}={value!r}. Got {given!r} instead.")

    def _agree(self, X: NDArray[Any], y: NDArray[Any], rows: Rows) -> None:
        """Refuse parameters and shards that are not of one problem."""
        own = ("device", "random_state", "verbose")
        parameters = {name: value for name, value in self.get_params(deep=False).items() if name not in own}
        labels = y.dtype.kind in "OSTU"
        rows.agree(
            {
                "the class of the estimator": type(self).__name__,
                **parameters,
                "the number of features": X.shape[1],
                "the names of the features": getattr(self, "feature_names_in_", None),
                "the precision of X": X.dtype.name,
                "the shape of y": y.shape[1:],
                "whether y are strings": labels,
            }
        )

    def _check_provable(self, rank: int, n_outputs: int) -> None:
        """Refuse a proof that is impossible or hopeless, before any training."""
        if self.certificate != "exact" or (self._enumerates and n_outputs == 1):
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

    def _patterns(self, training: Training, rng: np.random.RandomState) -> NDArray[np.bool_] | None:
        """Return the arrangements to choose from; None stands for all of them."""
        if not isinstance(self.arrangements, str):
            return given_arrangements(training.X, self.arrangements)
        if self.arrangements == "sampled":
            gates = np.random.default_rng(rng.randint(2**31 - 1))
            return sampled_arrangements(training.X, training.weight, self.n_arrangements, gates)
        return enumerate_arrangements(training.whitening.A) if self._enumerates else None

    def _options(self, rng: np.random.RandomState, deadline: float) -> Options:
        return Options(
            tol=self.tol,
            max_iter=self.max_iter,
            max_neurons=self.max_neurons,
            search_starts=self.search_starts,
            rng=rng,
            # One process speaks for all.
            verbose=int(self.verbose) if training_rows().rank == 0 else 0,
            deadline=deadline,
        )

    def _start(self, training: Training) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Return the network of the last fit in the coordinates of the new data, if it is to be used."""
        network: BatchNormNetwork | None = getattr(self, "network_", None)
        return None if network is None or not self.warm_start else training.start(network)

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
            stacklevel=6,
        )
