"""Networks whose last two layers are a formula, because their features span the space of the rows."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils import check_array, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, validate_data

from skcvxbn._sklearn import beside, check_sample_weight, fit_context, on_host
from skcvxbn.distributed import refuse_shards
from skcvxbn.estimators._closed_form import PRECISIONS, ClosedFormEstimator
from skcvxbn.training import positive_rows


class ClosedFormBNNet(RegressorMixin, ClosedFormEstimator):
    r"""Globally optimal batch-norm ReLU network in closed form, for regression.

    When the features span :math:`R^n`, n being the number of distinct training rows (more features than
    rows, or a wide hidden layer), the optimal last two layers of a network with batch normalization are a
    formula: for one target a neuron for its positive and one for its negative part, each soft-thresholded
    by the weight decay. There is no training. The minimum of

    .. math:: \frac12 \sum_i \|f(x_i) - y_i\|^2
              + \frac\beta2 \sum_j (\gamma_j^2 + \alpha_j^2 + \|v_j\|^2)

    over the weights and the width of the last two layers, v being output weights and gamma and alpha scale
    and shift of batch normalization, is attained exactly and proved by a dual point.

    Parameters
    ----------
    beta : float, default=None
        Weight decay, absolute, as in the paper: it multiplies a sum of squares over the neurons while the
        loss is a sum over rows. None means ``beta_ratio * beta_max_``.
    beta_ratio : float, default=0.01
        Weight decay as a share of `beta_max_`, the smallest one for which no neuron is worth its price.
        Used when `beta` is None. It shrinks the outputs of the neurons and drops small ones.
    fit_intercept : bool, default=False
        Whether to add an output bias that is not penalised. The network of the paper has none, and a
        neuron has a shift of its own. With several outputs it needs ``bn_position="after"``.
    hidden_layer_sizes : array-like of int or "auto", default="auto"
        Widths of hidden batch-norm ReLU layers of random weights before the last two layers. "auto" adds
        none where the features span :math:`R^n` as they are, and otherwise one layer, eight times as wide
        as there are distinct rows (twice, when there are many); none after a `feature_extractor`. ``()``
        adds none. `hidden_layer_sizes_` states what was used.
    feature_extractor : object, default=None
        What comes before these layers: a fitted scikit-learn transformer, or a `torch.nn.Module`, run in
        evaluation mode in batches on the device of its parameters, its outputs flattened. It is neither
        fitted nor copied, not even by `sklearn.base.clone`, and `X` is whatever it takes.
    bn_position : {"before", "after"}, default="before"
        Whether batch normalization of the last hidden layer comes before the ReLU or after it.
    random_state : int, RandomState instance or None, default=None
        Source of the random layers. Unused without them: the last two layers are a formula.

    Attributes
    ----------
    network_ : BatchNormNetwork or DeepBatchNormNetwork
        The network, the latter with hidden layers or a feature extractor: the whole chain, its last two
        layers being ``network_.head``. These are a `BatchNormAfterReLUNetwork` with `bn_position` "after".
        ``network_.to_torch()`` exports it to PyTorch.
    objective_ : float
        Training objective of the last two layers with the weight decay `beta_`, as
        ``network_.objective`` computes it by a forward pass.
    lower_bound_ : float
        Value of the dual point of the formula: no network on these features, or on any other, has a
        smaller objective.
    dual_gap_ : float
        ``objective_ - lower_bound_``, zero up to rounding.
    certificate_ : str
        "exact": the bound is a proof, up to rounding.
    beta_ : float
        The weight decay used.
    beta_max_ : float
        The smallest weight decay at which the optimal network has no neuron.
    n_neurons_ : int
        Number of neurons of the last hidden layer: two for one output of
        both signs; one for each non-negative output column; with ``bn_position="after"`` one for one output.
    hidden_layer_sizes_ : tuple of int
        Widths of the random layers before it.
    rank_ : int
        Rank of the features of the last two layers: of the centred ones with `bn_position` "before".
    residual_ : float
        How far, relatively, the outputs on the training rows are from those of the formula: rounding.
    intercept_ : float or ndarray of shape (n_outputs,)
        Output bias: a float for one-dimensional `y`. Zero without `fit_intercept`.
    n_features_in_ : int
        Number of features seen during `fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features seen during `fit`, when all of them are strings.

    See Also
    --------
    ClosedFormBNClassifier : The same for classification.
    ConvexBNRegressor : Certified training without a condition on the features.
    SVDTruncation : Keeps the leading directions of the data, which regularizes.

    Notes
    -----
    Theorems 2.1 and 2.4 of [1]_, for deep networks 4.1 and 4.2, and G.2 with `bn_position` "after";
    `skcvxbn.closed_form` has them as functions, with proofs. Several targets have a closed form when any two
    rows of `y` point in the same direction or make an angle of at least 90 degrees, as columns of disjoint
    supports do; with `bn_position` "after" all have one. Others raise an error.

    The network interpolates the training rows, up to the shrinkage by `beta_`: it is optimal for the
    training objective and fits their noise. Of the weights that do, those of minimum norm are taken, in
    the units of the features.

    A `sample_weight` of two counts a row twice, in the loss and in the statistics of batch normalization; a
    weight of zero removes it. Rows with equal features are merged into one of the average target.

    A random layer draws weights from a normal distribution, in units of the standard deviation of each
    input, with a batch-norm scale of one and shifts that put the kinks of the neurons at training rows.
    Networks with such layers are float64, whatever the dtype of `X`.

    References
    ----------
    .. [1] T. Ergen, A. Sahiner, B. Ozturkler, J. Pauly, M. Mardani, M. Pilanci, "Demystifying Batch
       Normalization in ReLU Networks: Equivalent Convex Optimization Models and Implicit
       Regularization", ICLR 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn import ClosedFormBNNet
    >>> rng = np.random.RandomState(0)
    >>> X, y = rng.standard_normal((20, 50)), rng.standard_normal(20)
    >>> model = ClosedFormBNNet(beta=0.5).fit(X, y)
    >>> positive, negative = np.linalg.norm(np.maximum(y, 0)), np.linalg.norm(np.minimum(y, 0))
    >>> bool(np.isclose(model.objective_, 0.5 * (positive + negative) - 0.5**2, rtol=1e-10))
    True
    >>> model.n_neurons_, model.certificate_
    (2, 'exact')
    """

    _certified: ClassVar[str] = "ConvexBNRegressor"

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> ClosedFormBNNet:
        """Write down the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows, dense and finite; with a `feature_extractor` what that takes. float32 is kept,
            anything else is read as float64.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights of the rows.

        Returns
        -------
        self : ClosedFormBNNet
            The fitted estimator. When `fit` raises, a previously fitted one is left as it was.

        Raises
        ------
        ValueError, TypeError
            If a parameter, the data or the weights are not as described, if the targets have no closed
            form, or if the rank of the features is too low (`hidden_layer_sizes` other than "auto", or a
            `feature_extractor`).

        Warns
        -----
        ConvergenceWarning
            If the features are so ill-conditioned that rounding keeps the network from the optimum.
        """
        refuse_shards(type(self).__name__)
        self._check_sizes()
        y, sample_weight = on_host(y), on_host(sample_weight)
        with self._unchanged_on_failure():
            if self.feature_extractor is None:
                numeric: Any = {"multi_output": True, "y_numeric": True, "dtype": PRECISIONS}
                X, y = validate_data(self, on_host(X), y, ensure_min_samples=2, **numeric)
            Y = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
            check_consistent_length(X, Y)
            weight = check_sample_weight(sample_weight, Y)
            if self.feature_extractor is not None:
                X = self._features(X)
            X, Y, weight = positive_rows(X, Y, weight)
            single_output = Y.ndim == 1
            self._train(X, Y.reshape(len(Y), -1), weight, single_output=single_output)
            self._single_output = single_output
        return self

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


class ClosedFormBNClassifier(ClassifierMixin, ClosedFormEstimator):
    r"""Globally optimal batch-norm ReLU network in closed form, for classification.

    The network of :class:`ClosedFormBNNet` with the squared error on coded labels. With two classes it has
    one output, whose target is -1 or +1; with C > 2 classes it has C outputs, and the target of a row is
    the indicator of its class (Theorem 2.4). Both give one neuron a class and the same objective. The class
    predicted is the one of the largest output.

    Parameters
    ----------
    beta : float, default=None
        Weight decay, absolute, as in the paper: it multiplies a sum of squares over the neurons while the
        loss is a sum over rows. None means ``beta_ratio * beta_max_``.
    beta_ratio : float, default=0.01
        Weight decay as a share of `beta_max_`, the smallest one for which no neuron is worth its price.
        Used when `beta` is None. It shrinks the outputs of the neurons and drops small ones.
    fit_intercept : bool, default=False
        Whether to add an output bias that is not penalised. The network of the paper has none, and a
        neuron has a shift of its own. With three or more classes it needs
        ``bn_position="after"``.
    hidden_layer_sizes : array-like of int or "auto", default="auto"
        Widths of hidden batch-norm ReLU layers of random weights before the last two layers. "auto" adds
        none where the features span :math:`R^n` as they are, and otherwise one layer, eight times as wide
        as there are distinct rows (twice, when there are many); none after a `feature_extractor`. ``()``
        adds none. `hidden_layer_sizes_` states what was used.
    feature_extractor : object, default=None
        What comes before these layers: a fitted scikit-learn transformer, or a `torch.nn.Module`, run in
        evaluation mode in batches on the device of its parameters, its outputs flattened. It is neither
        fitted nor copied, not even by `sklearn.base.clone`, and `X` is whatever it takes.
    bn_position : {"before", "after"}, default="before"
        Whether batch normalization of the last hidden layer comes before the ReLU or after it.
    random_state : int, RandomState instance or None, default=None
        Source of the random layers. Unused without them: the last two layers are a formula.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels of the training rows of positive weight, sorted.
    network_ : BatchNormNetwork or DeepBatchNormNetwork
        The network, the latter with hidden layers or a feature extractor: the whole chain, its last two
        layers being ``network_.head``. These are a `BatchNormAfterReLUNetwork` with `bn_position` "after".
        ``network_.to_torch()`` exports it to PyTorch.
    objective_ : float
        Training objective of the last two layers with the weight decay `beta_`, as
        ``network_.objective`` computes it by a forward pass.
    lower_bound_ : float
        Value of the dual point of the formula: no network on these features, or on any other, has a
        smaller objective.
    dual_gap_ : float
        ``objective_ - lower_bound_``, zero up to rounding.
    certificate_ : str
        "exact": the bound is a proof, up to rounding.
    beta_ : float
        The weight decay used.
    beta_max_ : float
        The smallest weight decay at which the optimal network has no neuron.
    n_neurons_ : int
        Number of neurons of the last hidden layer: one for each class, unless
        `beta_` prices it out.
    hidden_layer_sizes_ : tuple of int
        Widths of the random layers before it.
    rank_ : int
        Rank of the features of the last two layers: of the centred ones with `bn_position` "before".
    residual_ : float
        How far, relatively, the outputs on the training rows are from those of the formula: rounding.
    intercept_ : float or ndarray of shape (n_classes,)
        Output bias: a float for two classes. Zero without `fit_intercept`.
    n_features_in_ : int
        Number of features seen during `fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features seen during `fit`, when all of them are strings.

    See Also
    --------
    ClosedFormBNNet : The same for regression, with the theory.
    ConvexBNClassifier : Certified training without a condition on the features.
    SVDTruncation : Keeps the leading directions of the data, which regularizes.

    Notes
    -----
    See :class:`ClosedFormBNNet`. Rows with equal features and different labels have a closed form with two
    classes, not with more. The outputs are regressions on the labels, not probabilities, hence no
    `predict_proba`; `sklearn.calibration.CalibratedClassifierCV` adds it.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import train_test_split
    >>> from skcvxbn import ClosedFormBNClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> X_train, X_test, y_train, y_test = train_test_split(X, y, train_size=300, random_state=0)
    >>> model = ClosedFormBNClassifier(random_state=0).fit(X_train, y_train)
    >>> model.n_neurons_, model.hidden_layer_sizes_
    (10, (2400,))
    >>> model.score(X_test, y_test) > 0.9
    True
    """

    _certified: ClassVar[str] = "ConvexBNClassifier"

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> ClosedFormBNClassifier:
        """Write down the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows, dense and finite; with a `feature_extractor` what that takes. float32 is kept,
            anything else is read as float64.
        y : array-like of shape (n_samples,)
            Labels of any type, at least two different ones.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights of the rows.

        Returns
        -------
        self : ClosedFormBNClassifier
            The fitted estimator. When `fit` raises, a previously fitted one is left as it was.

        Raises
        ------
        ValueError, TypeError
            If a parameter, the data or the weights are not as described, if the rows of positive weight
            belong to one class, or if the rank of the features is too low (`hidden_layer_sizes` other than
            "auto", or a `feature_extractor`).

        Warns
        -----
        ConvergenceWarning
            If the features are so ill-conditioned that rounding keeps the network from the optimum.
        """
        refuse_shards(type(self).__name__)
        self._check_sizes()
        y, sample_weight = on_host(y), on_host(sample_weight)
        with self._unchanged_on_failure():
            if self.feature_extractor is None:
                X, y = validate_data(self, on_host(X), y, dtype=PRECISIONS, ensure_min_samples=2)
            y = column_or_1d(y, warn=True)
            check_consistent_length(X, y)
            check_classification_targets(y)
            weight = check_sample_weight(sample_weight, y)
            if self.feature_extractor is not None:
                X = self._features(X)
            X, y, weight = positive_rows(X, y, weight)
            self.classes_, codes = np.unique(y, return_inverse=True)
            n_classes = len(self.classes_)
            if n_classes < 2:
                raise ValueError(
                    "ClosedFormBNClassifier requires samples of at least 2 classes in the data (rows of "
                    "weight zero do not count), but the data contains only one class: "
                    f"{self.classes_[0]!r}."
                )
            columns = np.array([[-1.0], [1.0]]) if n_classes == 2 else np.eye(n_classes)
            self._train(X, columns[codes], weight, single_output=n_classes == 2)
        return self

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
        out = self._forward(X)
        return beside(out[:, 0] if len(self.classes_) == 2 else out, X)

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
        out = self._forward(X)
        codes = (out[:, 0] > 0).astype(int) if len(self.classes_) == 2 else out.argmax(axis=1)
        return beside(self.classes_[codes], X)
