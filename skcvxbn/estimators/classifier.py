"""Classification by a batch-norm ReLU network trained to a stated gap."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, softmax
from sklearn.base import ClassifierMixin
from sklearn.utils import column_or_1d
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from skcvxbn._sklearn import Interval, StrOptions, beside, fit_context, on_host
from skcvxbn.arrays import Rows
from skcvxbn.backend import within_memory
from skcvxbn.estimators._base import ConvexBNEstimator
from skcvxbn.targets import CLASSIFICATION_LOSSES, Targets, class_targets, class_weights


def _has_probabilities(classifier: ConvexBNClassifier) -> bool:
    if classifier.loss == "log_loss":
        return True
    raise AttributeError(
        f"Probabilities are available for loss='log_loss' only. Got loss={classifier.loss!r} instead; "
        "sklearn.calibration.CalibratedClassifierCV adds them to any classifier."
    )


class ConvexBNClassifier(ClassifierMixin, ConvexBNEstimator):
    r"""Globally optimal two-layer ReLU network with batch normalization, for classification.

    The network of :class:`ConvexBNRegressor` is trained on labels. With two classes it has one output, which
    is positive for the second class; with C > 2 classes it has C outputs, and the class predicted is the one
    of the largest output.

    .. math:: \sum_i w_i \ell(f(x_i), y_i)
              + \frac\beta2 \sum_j (\gamma_j^2 + \alpha_j^2 + \|v_j\|^2)

    is minimised over the weights and the width of the network. This is equivalent to a convex problem, so
    there is no step size, no width and no initialization to choose, and the fit states how far from the
    optimum it may be. Features need no scaling.

    Parameters
    ----------
    beta : float, default=None
        Weight decay, absolute, as in the paper: it multiplies a sum of squares over the neurons while the
        loss is a sum over rows, so the same `beta` regularizes less when there are more rows. None means
        ``beta_ratio * beta_max_``.
    beta_ratio : float, default=0.003
        Weight decay as a share of `beta_max_`, the smallest one for which no neuron is worth its price.
        It has no units, which makes it the parameter to search over. Used when `beta` is None.
    loss : {"log_loss", "squared_error", "hinge", "squared_hinge"}, default="log_loss"
        What the outputs f of a row cost.

        - "log_loss": the negative log likelihood. With two classes f is the log odds of the second; with
          more the probabilities are the softmax of the outputs. The only one with `predict_proba`.
        - "squared_error": half the squared distance from -1 and +1 or, with more than two classes, from the
          indicator of the class.
        - "hinge": ``max(0, 1 - y f)`` for y = -1 and +1; with more than two classes, the sum over all of
          them, each against the rest.
        - "squared_hinge": half the square of that.
    class_weight : dict or "balanced", default=None
        Weights of the classes, by which the weights of their rows are multiplied: a dict from labels to
        positive numbers (one for labels that are absent), or "balanced", which makes the total weights of
        all classes equal and leaves their sum as it is.
    shrinkage : float or "auto", default="auto"
        Share of the variance of the standardised features, from 0 to below 1, that batch normalization leaves
        out. Without it (0, the network of the paper) a neuron is divided by its standard deviation, so that
        directions in which the data hardly vary count as much as the others. With it, a neuron is divided
        by the standard deviation that it would have if the features carried noise
        (:func:`skcvxbn.shrinkage.shrunk`): most of the share is taken from small directions. It helps where
        features are correlated, or about as many as the rows.
        "auto" is 0.3 if `beta` is None; with an absolute `beta` it is 0, which states the problem of the
        paper.
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
    tol : float, default=0.05
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
    classes_ : ndarray of shape (n_classes,)
        The labels of the training rows of positive weight, sorted.
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
        The smallest weight decay at which the optimal network has no neuron; for the hinge an upper
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
    class_weight_ : ndarray of shape (n_classes,)
        The factor of each class that `class_weight` stands for.
    intercept_ : float or ndarray of shape (n_classes,)
        Output bias: a float for two classes. Zero without `fit_intercept`.
    n_features_in_ : int
        Number of features seen during `fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features seen during `fit`, when all of them are strings.

    See Also
    --------
    ConvexBNRegressor : The same network for regression.
    SVDTruncation : Keeps the leading directions of the data, which regularizes and saves time.

    Notes
    -----
    The theorems hold for every convex loss (Appendix B.1 of the paper), whose conjugate gives the lower
    bound; for the theory see :class:`ConvexBNRegressor`. For losses other than the log loss,
    `sklearn.calibration.CalibratedClassifierCV` adds probabilities.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skcvxbn import ConvexBNClassifier
    >>> X, y = load_iris(return_X_y=True, as_frame=False)
    >>> names = load_iris().target_names[y]
    >>> model = ConvexBNClassifier(random_state=0).fit(X, names)
    >>> model.predict(X[[0, 75, 149]])
    array(['setosa', 'versicolor', 'virginica'], dtype='<U10')
    >>> model.predict_proba(X).shape
    (150, 3)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ConvexBNEstimator._parameter_constraints,
        "loss": [StrOptions(set(CLASSIFICATION_LOSSES))],
        "shrinkage": [Interval(Real, 0.0, 1.0, closed="left"), StrOptions({"auto"})],
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }

    def __init__(
        self,
        *,
        beta: float | None = None,
        beta_ratio: float = 0.003,
        loss: str = "log_loss",
        class_weight: dict[Any, float] | str | None = None,
        shrinkage: float | str = "auto",
        fit_intercept: bool = True,
        arrangements: Any = "generated",
        n_arrangements: int = 500,
        max_neurons: int | None = None,
        solver: str = "auto",
        tol: float = 0.05,
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
        self.class_weight = class_weight

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> ConvexBNClassifier:
        """Train the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows, dense and finite, read in the precision that `dtype` says.
        y : array-like of shape (n_samples,)
            Labels of any type, at least two different ones.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights of the rows.

        Returns
        -------
        self : ConvexBNClassifier
            The fitted estimator. When `fit` raises, a previously fitted one is left as it was.

        Raises
        ------
        ValueError, TypeError
            If a parameter, the data or the weights are not as described, or if the rows of positive
            weight belong to one class.

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

    def _validate(self, X: Any, y: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        X, y = validate_data(self, on_host(X), on_host(y), dtype=self._dtypes, ensure_min_samples=2)
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        return X, y

    def _code(
        self, y: NDArray[Any], weight: NDArray[np.float64], rows: Rows
    ) -> tuple[Targets, NDArray[np.float64]]:
        self.classes_ = np.unique(np.concatenate(rows.everyone(np.unique(y))))
        if len(self.classes_) < 2:
            (one,) = self.classes_.tolist()
            raise ValueError(
                f"{type(self).__name__} requires samples of at least 2 classes in the data (rows of weight "
                f"zero do not count), but the data contains only one class: {one!r}."
            )
        self.class_weight_ = class_weights(self.class_weight, self.classes_, y, weight, rows)
        return self._coded(y, weight)

    def _coded(self, y: NDArray[Any], weight: NDArray[np.float64]) -> tuple[Targets, NDArray[np.float64]]:
        codes = np.searchsorted(self.classes_, y)
        return class_targets(codes, len(self.classes_), self.loss), weight * self.class_weight_[codes]

    @property
    def _single_output(self) -> bool:
        return len(self.classes_) == 2

    def decision_function(self, X: Any) -> NDArray[Any]:
        """Return the outputs of the network, each row by itself.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Any rows, in the units of the training data.

        Returns
        -------
        decision : ndarray of shape (n_samples,) or (n_samples, n_classes)
            With two classes one output, positive for ``classes_[1]``; otherwise one output a class.
        """
        return beside(self._decision(X), X)

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict the class of the largest output.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Any rows, in the units of the training data.

        Returns
        -------
        y : ndarray of shape (n_samples,)
            Labels among `classes_`.
        """
        decision = self._decision(X)
        which = (decision > 0).astype(int) if decision.ndim == 1 else decision.argmax(axis=1)
        return beside(self.classes_[which], X)

    @available_if(_has_probabilities)
    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Predict the probabilities of the classes; for ``loss="log_loss"`` only.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Any rows, in the units of the training data.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            In the order of `classes_`; every row adds up to one.
        """
        return beside(softmax(self._logits(X), axis=1), X)

    @available_if(_has_probabilities)
    def predict_log_proba(self, X: Any) -> NDArray[Any]:
        """Predict the logarithms of the probabilities of the classes; for ``loss="log_loss"`` only.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Any rows, in the units of the training data.

        Returns
        -------
        log_probabilities : ndarray of shape (n_samples, n_classes)
            In the order of `classes_`, without underflow.
        """
        return beside(log_softmax(self._logits(X), axis=1), X)

    def _decision(self, X: Any) -> NDArray[Any]:
        out = self._forward(X)
        return out[:, 0] if self._single_output else out

    def _logits(self, X: Any) -> NDArray[Any]:
        decision = self._decision(X)
        if decision.ndim == 1:
            return np.stack([np.zeros_like(decision), decision], axis=1)
        return decision
