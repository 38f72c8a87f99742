"""Regression with a weight decay that is chosen by cross-validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from skcvxbn.estimators._cross_validation import N_RATIOS, CrossValidated, constraints
from skcvxbn.estimators.regressor import ConvexBNRegressor


class ConvexBNRegressorCV(CrossValidated, ConvexBNRegressor):
    """Regression by a batch-norm network whose weight decay is chosen by cross-validation.

    Parameters
    ----------
    beta_ratios : int or array-like of shape (n_ratios,), default=10
        Weight decays to compare, as shares of the `beta_max` of the training rows of each fold. An absolute
        weight decay is for a number of rows, since the loss is a sum over them, and folds have fewer; a
        share means the same everywhere. An int is their number: they are then spaced evenly on a log scale
        from 1, where the network has no neuron, to `eps`.
    eps : float, default=1e-3
        Smallest share, if `beta_ratios` is an int.
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
    shrinkage : float or list of floats, default=0.0
        Share of the variance of the standardised features, from 0 to below 1, that batch normalization leaves
        out. Without it (0, the network of the paper) a neuron is divided by its standard deviation, so that
        directions in which the data hardly vary count as much as the others. With it, a neuron is divided
        by the standard deviation that it would have if the features carried noise
        (:func:`skcvxbn.shrinkage.shrunk`): most of the share is taken from small directions. It helps where
        features are correlated, or about as many as the rows. The values of a list are compared, each with
        all weight decays.
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
    tol : float, default=1e-2
        Relative gap ``dual_gap_ / objective_`` at which training stops.
    max_iter : int, default=30
        Largest number of rounds, each of which solves for the current neurons and searches for new ones.
    max_time : float, default=None
        Seconds after which training stops with the best network so far and a ConvergenceWarning. None sets
        no limit. An interrupt from the keyboard ends training in the same way.
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
    n_components : int, float, None or list of these, default=None
        How many of the leading singular directions of the training rows to keep, as in
        :class:`SVDTruncation` in front of the estimator: a number, a share of the variance in (0, 1), or None
        for all of them. The network returned takes rows as they are. The values of a list are compared,
        each with all weight decays (and all values of `shrinkage`).
    cv : int, cross-validation generator or iterable, default=None
        How to split the rows, as in `GridSearchCV`. None are five folds.
    scoring : str or callable, default=None
        What to compare: a name of a scorer of scikit-learn, or a callable ``scorer(estimator, X, y)``. None
        is minus the mean over the held-out rows of the loss that the network is trained with: half the
        squared error, the absolute error, and so on.
    selection_rule : {"best", "one_standard_error"}, default="best"
        Which candidate to choose: that of the best mean score or, for the same `n_components` and
        `shrinkage`, the one of the largest weight decay whose mean score is within one standard error of it
        (a simpler network).
    refit : bool, default=True
        Whether to train a network on all rows with the weight decay chosen. Without it there are the
        results of the search, and no predictions.
    cv_tol : float, default=0.05
        Relative gap at which the training of a network of a fold stops, as a short search estimates it.
        Networks are only compared: their scores change little from here on.
    n_jobs : int, default=None
        How many tasks run at the same time. A task is the whole path of weight decays for one fold, one
        `n_components` and one `shrinkage`, through joblib; None means 1 unless in a
        `joblib.parallel_config` context.
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
        Source of the starting points and of the sampled gates. Pass an int for the same result at every
        call.
    verbose : int, default=0
        1 prints the progress over the tasks, and the objective and the gap after every round of the
        last fit.

    Attributes
    ----------
    beta_ratio_ : float
        The share chosen.
    beta_ : float
        The weight decay chosen: ``beta_ratio_ * beta_max_``.
    n_components_ : int, float or None
        The value of `n_components` chosen.
    shrinkage_ : float
        The value of `shrinkage` chosen.
    best_index_ : int
        Index of the candidate chosen in `cv_results_`.
    best_score_ : float
        Its mean score.
    beta_ratios_ : ndarray of shape (n_ratios,)
        The shares compared, decreasing.
    betas_ : ndarray of shape (n_ratios,)
        The weight decays that they stand for on all rows: ``beta_ratios_ * beta_max_``.
    cv_results_ : dict of str to ndarray
        As of `GridSearchCV`, with one entry a candidate: "params", "param_beta_ratio",
        "param_n_components", "param_shrinkage", "split0_test_score" and so on, "rank_test_score", and
        "mean_" and "std_" of "test_score", "objective" (in training), "n_neurons", "fit_time" and
        "score_time".
    n_splits_ : int
        Number of splits.
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
    ConvexBNRegressor : The network for a given weight decay.
    convex_bn_path : The networks along the weight decay, on all rows.

    Notes
    -----
    The weight decays of a fold are trained in decreasing order, each network from the one before, by descent
    and short searches and without a certificate: a path of them costs less than one fit to a small gap.
    The last fit is that of :class:`ConvexBNRegressor` with `beta_ratio_`, gap and certificate included.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn import ConvexBNRegressorCV
    >>> rng = np.random.RandomState(0)
    >>> X = rng.uniform(-1, 1, (60, 1))
    >>> y = np.abs(X[:, 0]) + 0.1 * rng.standard_normal(60)
    >>> model = ConvexBNRegressorCV(beta_ratios=5, eps=1e-2, random_state=0).fit(X, y)
    >>> model.beta_ratios_.round(3)
    array([1.   , 0.316, 0.1  , 0.032, 0.01 ])
    >>> model.beta_ratio_ < 1, model.score(X, y) > 0.8
    (True, True)
    """

    _plain = ConvexBNRegressor
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = constraints(ConvexBNRegressor)

    def __init__(
        self,
        *,
        beta_ratios: int | ArrayLike = N_RATIOS,
        eps: float = 1e-3,
        loss: str = "squared_error",
        epsilon: float = 1.35,
        quantile: float = 0.5,
        shrinkage: Any = 0.0,
        fit_intercept: bool = True,
        arrangements: Any = "generated",
        n_arrangements: int = 500,
        max_neurons: int | None = None,
        solver: str = "auto",
        tol: float = 1e-2,
        max_iter: int = 30,
        max_time: float | None = None,
        search_starts: int = 512,
        certificate: str = "estimated",
        certificate_max_time: float = 60.0,
        n_components: Any = None,
        cv: Any = None,
        scoring: str | Callable[..., float] | None = None,
        selection_rule: str = "best",
        refit: bool = True,
        cv_tol: float = 0.05,
        n_jobs: int | None = None,
        memory: Any = None,
        backend: str = "numpy",
        device: str | None = None,
        dtype: str | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.beta_ratios = beta_ratios
        self.eps = eps
        self.loss = loss
        self.epsilon = epsilon
        self.quantile = quantile
        self.shrinkage = shrinkage
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
        self.n_components = n_components
        self.cv = cv
        self.scoring = scoring
        self.selection_rule = selection_rule
        self.refit = refit
        self.cv_tol = cv_tol
        self.n_jobs = n_jobs
        self.memory = memory
        self.backend = backend
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose
