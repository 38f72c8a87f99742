"""Regression by a batch-norm ReLU network trained to a stated gap."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import RegressorMixin
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data

from skcvxbn._sklearn import Interval, StrOptions, beside, fit_context, on_host
from skcvxbn.arrays import Rows
from skcvxbn.backend import within_memory
from skcvxbn.estimators._base import DEFAULT_BETA_RATIO, ConvexBNEstimator
from skcvxbn.targets import REGRESSION_LOSSES, Targets, regression_targets


class ConvexBNRegressor(RegressorMixin, ConvexBNEstimator):
    r"""Globally optimal two-layer ReLU network with batch normalization, for regression.

    The network has batch normalization between its hidden layer and the ReLU,

    .. math:: f(X) = \sum_j (\mathrm{BN}(X w_j))_+ v_j^T + 1 b^T , \qquad
              \mathrm{BN}(h) = \gamma_j \frac{h - \bar h}{\|h - \bar h\|_2}
              + \frac{\alpha_j}{\sqrt n} ,

    and is trained to minimise

    .. math:: \sum_i w_i \ell(f(x_i), y_i)
              + \frac\beta2 \sum_j (\gamma_j^2 + \alpha_j^2 + \|v_j\|^2)

    over its weights and its width. This is equivalent to a convex problem, so there is no step size, no
    width and no initialization to choose, and the fit states how far from the optimum it may be.
    Features need no scaling: the network is the same for any units and offsets of `X`.

    Parameters
    ----------
    beta : float, default=None
        Weight decay, absolute, as in the paper: it multiplies a sum of squares over the neurons while the
        loss is a sum over rows, so the same `beta` regularizes less when there are more rows. None means
        ``beta_ratio * beta_max_``.
    beta_ratio : float, default=0.01
        Weight decay as a share of `beta_max_`, the smallest one for which no neuron is worth its price.
        It has no units, which makes it the parameter to search over. Used when `beta` is None.
    loss : {"squared_error", "absolute_error", "huber", "pinball"}, default="squared_error"
        What an error e of a target costs. Losses of several targets add up.

        - "squared_error": half its square.
        - "absolute_error": its magnitude. The network predicts medians, and outliers have little effect.
        - "huber": half its square up to `epsilon`, and linear beyond.
        - "pinball": `quantile` times e where the target is above the output, ``1 - quantile`` times its
          magnitude where it is below. The network predicts that quantile.
    epsilon : float, default=1.35
        Error from which on the loss "huber" is linear, in the units of the target: the default suits targets
        whose noise has a standard deviation of one.
    quantile : float, default=0.5
        Quantile that the loss "pinball" predicts, between 0 and 1.
    shrinkage : float, default=0.0
        Share of the variance of the standardised features, from 0 to below 1, that batch normalization leaves
        out. Without it (0, the network of the paper) a neuron is divided by its standard deviation, so that
        directions in which the data hardly vary count as much as the others. With it, a neuron is divided
        by the standard deviation that it would have if the features carried noise
        (:func:`skcvxbn.shrinkage.shrunk`): most of the share is taken from small directions. It helps where
        features are correlated, or about as many as the rows.
    fit_intercept : bool, default=True
        Whether to add an output bias that is not penalised. The network of the paper has none.
    arrangements : {"generated", "sampled", "enumerated"} or array-like of shape (n_features, n_gates), \
            default="generated"
        Which on/off patterns of the training rows a hidden neuron may have.

        - "generated": all of them. Neurons are generated one after the other where the dual of the problem
          is violated, so the patterns need not be listed.
        - "sampled": those of `n_arrangements` random gates, the practice of the paper. The optimum is
          higher than over all arrangements.
        - "enumerated": all of them, listed; for data of very small rank (an error states their number when
          there are too many). The certificate is then exact.
        - an array: one gate vector g a column, which stands for the pattern ``X @ g >= 0``.
    n_arrangements : int, default=500
        Number of gates when `arrangements` is "sampled".
    max_neurons : int, default=None
        Largest number of neurons of the network. None sets no limit: as many as the optimum needs.
    solver : {"auto", "cvxpy"}, default="auto"
        "auto" is the solver of this library. "cvxpy" hands the convex program to an interior-point method
        through cvxpy; it is slow, meant as a reference, and needs `arrangements` other than "generated".
    tol : float, default=1e-4
        Relative gap ``dual_gap_ / objective_`` at which training stops.
    max_iter : int, default=30
        Largest number of rounds, each of which solves for the current neurons and searches for new ones.
    max_time : float, default=None
        Seconds after which training stops with the best network so far and a ConvergenceWarning. None sets
        no limit. An interrupt from the keyboard ends training in the same way. In both cases the bound is
        tested before `fit` returns, unless a further interrupt cuts that short.
    search_starts : int, default=512
        Random starting points of the last search for neurons that would lower the objective, on which
        `lower_bound_` rests when `certificate_` is "estimated". More starts cost time and make the bound
        more reliable.
    certificate : {"estimated", "exact"}, default="estimated"
        Where `lower_bound_` comes from when `arrangements` is "generated". "estimated": from a search, which
        may miss the neuron that would lower the objective most. "exact": from a proof, by branch and bound
        over all directions of a neuron, after training. It is for one output and data of small rank (10 at
        most): seconds for 100 rows of rank 4 or 400 of rank 2, a minute and more from rank 6 or
        for 400 rows of rank 4. A larger `tol` makes it cheaper.
    certificate_max_time : float, default=60.0
        Seconds for the proof. If it is not closed by then, `lower_bound_` is what it has proved so far, and a
        ConvergenceWarning says so.
    warm_start : bool, default=False
        Whether to start from the network of the previous call to `fit`, if the data have as many features
        and outputs. It saves time along a path of `beta`; it does not change what is being solved.
    memory : str or object with the joblib.Memory interface, default=None
        Where the whitened rows and `beta_max_` are cached: a folder, or what
        ``joblib.Memory`` returns. A search over parameters that do not change them (`beta`, `beta_ratio`,
        `tol`) then computes them once for each set of training rows. None caches nothing.
    backend : {"numpy", "torch"}, default="numpy"
        Array library that trains the network. "torch" needs PyTorch (``pip install torch``) and can train on
        a GPU, with `arrangements` "generated" only. What is fitted is NumPy either way.
    device : str, default=None
        Where PyTorch trains: "cpu", "cuda" or "cuda:1", the second GPU. None is a GPU where there is one.
    dtype : {"float32", "float64"}, default=None
        Precision of the rows, and of the network. None is that of the rows, and float64 where it is neither.
    random_state : int, RandomState instance or None, default=None
        Source of the starting points and of the sampled gates. Pass an int for the same network at every
        call. The objectives of different seeds agree within the stated gaps, where the bounds hold.
    verbose : int, default=0
        1 prints the objective and the gap after every round.

    Attributes
    ----------
    network_ : BatchNormNetwork
        The trained network; ``network_.to_torch()`` exports it to PyTorch.
    objective_ : float
        Training objective of `network_`, with the weight decay `beta_`, as
        ``network_.objective`` computes it by a forward pass.
    lower_bound_ : float
        No network, however wide, has a smaller objective, as far as `certificate_` goes.
    dual_gap_ : float
        ``objective_ - lower_bound_``: the most that any other network could gain.
    certificate_ : {"exact", "restricted", "estimated"}
        What `lower_bound_` is worth. "exact": a proof, up to rounding. "restricted": a proof that no
        network with the sampled or given arrangements is better; networks with other arrangements may be.
        "estimated": the bound holds if the search from `search_starts` points found the most violated
        dual constraint. That is a maximum of a function with many local maxima, so it is not a proof.
    beta_ : float
        The weight decay used.
    beta_max_ : float
        The smallest weight decay at which the optimal network has no neuron; for losses with kinks an upper
        bound of it.
    n_neurons_ : int
        Number of neurons of the network.
    n_iter_ : int
        Number of rounds of the solver.
    rank_ : int
        Dimension of the span of the centred training rows, or of what `shrinkage` keeps of it.
    singular_values_ : ndarray of shape (rank_,)
        Singular values of the centred training rows (weighted by the square root of `sample_weight`), each
        feature divided by its largest magnitude or, with `shrinkage`, by its standard deviation.
    intercept_ : float or ndarray of shape (n_outputs,)
        Output bias: a float for one-dimensional `y`. Zero without `fit_intercept`.
    n_features_in_ : int
        Number of features seen during `fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features seen during `fit`, when all of them are strings.

    See Also
    --------
    ConvexBNClassifier : The same network for classification.
    SVDTruncation : Keeps the leading directions of the data, which regularizes and saves time.
    beta_max : The weight decay at which the optimal network has no neuron.

    Notes
    -----
    Whitening makes the problem that of a network on orthonormal columns (Lemmas 1.1 and 2.1 of [1]_), whose
    global optimum over a set of arrangements is that of a convex program (Theorem 2.2 for one output,
    Theorem 2.3 for several). `objective_` is the objective of the network itself, evaluated by a
    forward pass; `lower_bound_` is the value of the dual program.

    A `sample_weight` of two counts a row twice, in the loss and in the statistics of batch normalization;
    a weight of zero removes it. Equal rows are merged before training, so the network does not depend on
    the order of the rows, nor on whether a row is repeated or weighted.

    With scikit-learn's configuration ``array_api_dispatch=True`` rows may be arrays of PyTorch, CuPy and
    other libraries, on any device. They are read on the host, and predictions come back in their library and
    on their device; fitted attributes are NumPy. For rows spread over processes see
    :func:`skcvxbn.sharded_rows`.

    References
    ----------
    .. [1] T. Ergen, A. Sahiner, B. Ozturkler, J. Pauly, M. Mardani, M. Pilanci, "Demystifying Batch
       Normalization in ReLU Networks: Equivalent Convex Optimization Models and Implicit
       Regularization", ICLR 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn import ConvexBNRegressor
    >>> X = np.linspace(-1, 1, 21)[:, None]
    >>> y = np.abs(X[:, 0])
    >>> model = ConvexBNRegressor(beta_ratio=1e-3, random_state=0).fit(X, y)
    >>> model.score(X, y) > 0.99
    True
    >>> model.dual_gap_ <= 1e-4 * model.objective_
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ConvexBNEstimator._parameter_constraints,
        "loss": [StrOptions(set(REGRESSION_LOSSES))],
        "epsilon": [Interval(Real, 0.0, np.inf, closed="neither")],
        "quantile": [Interval(Real, 0.0, 1.0, closed="neither")],
    }

    def __init__(
        self,
        *,
        beta: float | None = None,
        beta_ratio: float = DEFAULT_BETA_RATIO,
        loss: str = "squared_error",
        epsilon: float = 1.35,
        quantile: float = 0.5,
        shrinkage: float = 0.0,
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
        super().__init__(
            beta=beta,
            beta_ratio=beta_ratio,
            shrinkage=shrinkage,
            fit_intercept=fit_intercept,
            arrangements=arrangements,
            n_arrangements=n_arrangements,
            max_neurons=max_neurons,
            solver=solver,
            tol=tol,
            max_iter=max_iter,
            max_time=max_time,
            search_starts=search_starts,
            certificate=certificate,
            certificate_max_time=certificate_max_time,
            warm_start=warm_start,
            memory=memory,
            backend=backend,
            device=device,
            dtype=dtype,
            random_state=random_state,
            verbose=verbose,
        )
        self.loss = loss
        self.epsilon = epsilon
        self.quantile = quantile

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> ConvexBNRegressor:
        """Train the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows, dense and finite, read in the precision that `dtype` says.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights of the rows.

        Returns
        -------
        self : ConvexBNRegressor
            The fitted estimator. When `fit` raises, a previously fitted one is left as it was.

        Raises
        ------
        ValueError, TypeError
            If a parameter, the data or the weights are not as described.

        Warns
        -----
        ConvergenceWarning
            If the gap is above `tol` after `max_iter` rounds. The network is usable and its gap valid.
        """
        with self._unchanged_on_failure():
            X, y, weight, backend = self._checked(X, y, sample_weight)
            with within_memory(backend):
                self._fit(X, y, weight, backend)
        return self

    def _validate(self, X: Any, y: Any) -> tuple[NDArray[Any], NDArray[np.float64]]:
        X, y = validate_data(
            self,
            on_host(X),
            on_host(y),
            dtype=self._dtypes,
            multi_output=True,
            y_numeric=True,
            ensure_min_samples=2,
        )
        return X, check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")

    def _code(
        self, y: NDArray[Any], weight: NDArray[np.float64], rows: Rows
    ) -> tuple[Targets, NDArray[np.float64]]:
        del rows
        self._n_dimensions = y.ndim
        return self._coded(y, weight)

    def _coded(self, y: NDArray[Any], weight: NDArray[np.float64]) -> tuple[Targets, NDArray[np.float64]]:
        return regression_targets(y, self.loss, self.epsilon, self.quantile), weight

    @property
    def _single_output(self) -> bool:
        return self._n_dimensions == 1

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict the targets, each row by itself.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Any rows, in the units of the training data.

        Returns
        -------
        y : ndarray of shape (n_samples,) or (n_samples, n_outputs)
            The output of the network, of the dimensions of the `y` given to `fit`.
        """
        out = self._forward(X)
        return beside(out[:, 0] if self._single_output else out, X)

    def __sklearn_tags__(self) -> Any:
        """Declare several targets."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
