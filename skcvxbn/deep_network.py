"""Deep networks: a feature extractor, hidden batch-norm ReLU layers and the last two layers as the head."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skcvxbn.network import BatchNormNetwork, row_blocks

# Rows that a torch module sees at a time.
_BATCH_ROWS = 256


@dataclass(frozen=True, eq=False)
class BatchNormLayer:
    """A hidden layer ``relu((X @ weights - running_mean) / sqrt(running_var) * bn_weight + bn_bias)``.

    Parameters
    ----------
    weights : ndarray of shape (n_inputs, n_neurons)
        Weights of the layer, which has no bias: batch normalization would remove it.
    running_mean, running_var : ndarray of shape (n_neurons,)
        Mean and biased variance of ``X @ weights`` over the (weighted) training rows.
    bn_weight, bn_bias : ndarray of shape (n_neurons,)
        Scale and shift of batch normalization, in the units of PyTorch.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.deep_network import BatchNormLayer
    >>> one, zero = np.ones(1), np.zeros(1)
    >>> BatchNormLayer(np.array([[2.0]]), zero, one, one, one).forward(np.array([[-1.0], [3.0]]))
    array([[0.],
           [7.]])
    """

    weights: NDArray[Any]
    running_mean: NDArray[Any]
    running_var: NDArray[Any]
    bn_weight: NDArray[Any]
    bn_bias: NDArray[Any]

    def forward(self, X: NDArray[Any]) -> NDArray[Any]:
        """Compute the outputs of the layer, row by row.

        Parameters
        ----------
        X : ndarray of shape (n_samples, n_inputs)
            Any rows.

        Returns
        -------
        ndarray of shape (n_samples, n_neurons)
            The outputs.
        """
        H = X @ self.weights
        H -= self.running_mean
        H *= self.bn_weight / np.sqrt(self.running_var)
        H += self.bn_bias
        return np.maximum(H, 0, out=H)

    def to_torch(self) -> Any:
        """Export the layer to PyTorch.

        Returns
        -------
        torch.nn.Sequential
            ``Linear, BatchNorm1d, ReLU`` in evaluation mode.
        """
        width = self.weights.shape[1]
        identity = np.eye(width, dtype=self.weights.dtype)
        norm = (self.running_mean, self.running_var, self.bn_weight, self.bn_bias)
        return BatchNormNetwork(self.weights, *norm, identity, np.zeros_like(self.bn_bias)).to_torch()[:3]


def random_layer(
    X: NDArray[Any], width: int, rng: np.random.RandomState, sample_weight: NDArray[np.float64]
) -> BatchNormLayer:
    r"""Draw a hidden layer of random weights, with the batch-norm statistics of the rows.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_inputs)
        The training rows as they enter the layer, all different.
    width : int
        Number of neurons.
    rng : numpy.random.RandomState
        Source of the weights.
    sample_weight : ndarray of shape (n_samples,)
        Positive weights of the rows.

    Returns
    -------
    BatchNormLayer
        The layer, in the dtype of `X`.

    Notes
    -----
    The weights of a neuron are Gaussian, in units of the standard deviation of each input. `bn_weight` is
    one. The shift `bn_bias` puts the kink of the neuron at a training row: each row in turn, in random
    order; a neuron that would be off at all rows is mirrored. With shifts of zero all kinks would pass
    through the mean of the rows, and rows on one ray from there would have proportional features: on one
    input the features would have rank two.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.deep_network import random_layer
    >>> X = np.arange(4.0)[:, None]
    >>> layer = random_layer(X, 10, np.random.RandomState(0), np.ones(4))
    >>> int(np.linalg.matrix_rank(layer.forward(X)))
    4
    """
    share = sample_weight / sample_weight.sum()
    mean = share @ X
    # In units of the largest entry, whose square could overflow.
    largest = np.abs(X).max(axis=0)
    unit = np.where(largest > 0, largest, 1.0)
    spread = unit * np.sqrt(share @ np.square((X - mean) / unit))
    # A direction of rounding errors is not a direction of the data.
    varies = spread > 4 * np.finfo(X.dtype).eps * largest
    weights = rng.standard_normal((X.shape[1], width)) / np.sqrt(max(varies.sum(), 1))
    weights *= np.divide(1.0, spread, out=np.zeros_like(spread), where=varies)[:, None]
    weights = weights.astype(X.dtype)

    H = (X - mean) @ weights.astype(np.float64)
    H -= share @ H
    variance = share @ np.square(H)
    variance[variance == 0] = 1.0
    order = np.concatenate([rng.permutation(len(X)) for _ in range(-(-width // len(X)))])[:width]
    kink = H[order, np.arange(width)]
    # With its kink at the last row on its side a neuron is off everywhere, up to rounding errors that the
    # next layer would take for a feature. It looks the other way instead.
    sign = np.where(kink < H.max(axis=0), 1.0, -1.0)
    weights *= sign.astype(X.dtype)
    statistics = (mean @ weights, variance, np.ones(width), -sign * kink / np.sqrt(variance))
    return BatchNormLayer(weights, *(value.astype(X.dtype) for value in statistics))


@dataclass(frozen=True, eq=False)
class DeepBatchNormNetwork:
    """A network of more than two layers, in evaluation mode: features first, then the last two layers.

    Parameters
    ----------
    head : BatchNormNetwork
        The last two layers, which see the features.
    hidden : tuple of BatchNormLayer, default=()
        Hidden batch-norm ReLU layers before them.
    feature_extractor : object, default=None
        What comes before the hidden layers: a fitted scikit-learn transformer or a `torch.nn.Module`.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn import ClosedFormBNNet
    >>> X = np.linspace(-1, 1, 20)[:, None]
    >>> network = ClosedFormBNNet(hidden_layer_sizes=(60,), random_state=0).fit(X, X[:, 0] ** 2).network_
    >>> network.features(X).shape, network.forward(X).shape
    ((20, 60), (20, 1))
    """

    head: BatchNormNetwork
    hidden: tuple[BatchNormLayer, ...] = ()
    feature_extractor: Any = None

    def features(self, X: Any) -> NDArray[Any]:
        """Compute the outputs of the last layer before the head: A^(L-2) of the paper.

        Parameters
        ----------
        X : array-like
            Any rows that the first layer, or the feature extractor, takes.

        Returns
        -------
        ndarray of shape (n_samples, n_last_features)
            The features.
        """
        out = extract_features(self.feature_extractor, X)
        for layer in self.hidden:
            out = layer.forward(out)
        return out

    def forward(self, X: Any) -> NDArray[Any]:
        """Compute the output of the network, row by row.

        Parameters
        ----------
        X : array-like
            Any rows, in the units of the training data.

        Returns
        -------
        ndarray of shape (n_samples, n_outputs)
            The outputs.
        """
        first = extract_features(self.feature_extractor, X)
        out = []
        for rows in row_blocks(len(first), max((len(layer.bn_weight) for layer in self.hidden), default=1)):
            block = first[rows]
            for layer in self.hidden:
                block = layer.forward(block)
            out.append(self.head.forward(block))
        return np.concatenate(out)

    def objective(self, X: Any, Y: ArrayLike, beta: float, sample_weight: ArrayLike | None = None) -> float:
        """Compute the training objective of the last two layers by a forward pass.

        Parameters
        ----------
        X : array-like
            The training rows.
        Y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            The targets.
        beta : float
            Weight decay of the last two layers, on the sum over rows. Layers before them are given, and
            their own weight decay is a constant that is left out.
        sample_weight : array-like of shape (n_samples,), optional
            Weights of the rows; one each by default.

        Returns
        -------
        float
            The objective, as ``head.objective`` computes it on the features.
        """
        return self.head.objective(self.features(X), Y, beta, sample_weight)

    def to_torch(self) -> Any:
        """Export the whole chain to PyTorch.

        Returns
        -------
        torch.nn.Sequential
            All layers in evaluation mode, on the CPU; a torch feature extractor is copied into it, its
            outputs flattened. The parameters are copies.

        Raises
        ------
        TypeError
            If the feature extractor is not a torch module: export ``head`` alone then.
        ImportError
            If PyTorch is not installed.
        """
        extractor = self.feature_extractor
        if extractor is not None and not is_torch_module(extractor):
            raise TypeError(
                f"The feature extractor {type(extractor).__name__} is not a torch module and cannot be "
                "exported. network_.head.to_torch() exports the layers that take its output."
            )
        head = self.head.to_torch()
        import torch

        first = [] if extractor is None else [copy.deepcopy(extractor).cpu(), torch.nn.Flatten()]
        middle = [module for layer in self.hidden for module in layer.to_torch()]
        return torch.nn.Sequential(*first, *middle, *head).eval()


def is_torch_module(extractor: Any) -> bool:
    """Tell a `torch.nn.Module` from anything else without importing torch.

    Parameters
    ----------
    extractor : object
        Anything.

    Returns
    -------
    bool
        Whether it is one.

    Examples
    --------
    >>> from skcvxbn.deep_network import is_torch_module
    >>> is_torch_module("resnet")
    False
    """
    # Whoever made the module has imported torch.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(extractor, torch.nn.Module)


def extract_features(extractor: Any, X: Any) -> NDArray[Any]:
    """Compute the output of a fitted feature extractor, which is left as it is.

    Parameters
    ----------
    extractor : transformer, torch.nn.Module or None
        A transformer is asked to `transform`; a module runs in evaluation mode without gradients, in
        batches, on the device and in the dtype of its parameters. None returns the rows themselves.
    X : array-like
        What the extractor takes.

    Returns
    -------
    ndarray of shape (n_samples, n_features)
        The features; the outputs of a module are flattened.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.preprocessing import StandardScaler
    >>> from skcvxbn.deep_network import extract_features
    >>> X = np.array([[1.0], [3.0]])
    >>> extract_features(StandardScaler().fit(X), X)
    array([[-1.],
           [ 1.]])
    """
    if extractor is None:
        return np.asarray(X)
    if is_torch_module(extractor):
        return _torch_features(extractor, X)
    features = extractor.transform(X)
    return np.asarray(features.toarray() if hasattr(features, "toarray") else features)


def _torch_features(module: Any, X: Any) -> NDArray[Any]:
    import torch

    X = X if isinstance(X, torch.Tensor) else np.asarray(X)
    state = [*module.parameters(), *module.buffers()]
    floating = [value for value in state if value.is_floating_point()]
    place: dict[str, Any] = {"device": state[0].device} if state else {}
    if floating:
        place["dtype"] = floating[0].dtype
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            batches = [
                module(torch.as_tensor(X[start : start + _BATCH_ROWS]).to(**place)).flatten(1).cpu()
                for start in range(0, len(X), _BATCH_ROWS)
            ]
    finally:
        for part, training in modes:
            part.training = training
    features = torch.cat(batches)
    # NumPy has no bfloat16.
    return (features if features.dtype == torch.float64 else features.float()).numpy()
