"""The trained network: two layers with batch normalization, statistics of the training set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skcvxbn.losses import LossFunction, squared_error

# Hidden layers are computed a block of rows at a time, of about this many entries.
_BLOCK_ENTRIES = 2**22


# Two networks are equal when they are the same object: comparing arrays entry by entry has no truth value.
@dataclass(frozen=True, eq=False)
class BatchNormNetwork:
    r"""A two-layer ReLU network with batch normalization, in evaluation mode.

    With ``h = X @ hidden_weights`` the output is

    ``relu((h - running_mean) / sqrt(running_var) * bn_weight + bn_bias) @ output_weights + intercept`` .

    The running statistics are those of the training set, so every row is predicted by itself.

    Parameters
    ----------
    hidden_weights : ndarray of shape (n_features, n_neurons)
        Weights of the hidden layer, which has no bias: batch normalization would remove it. Their scale is
        arbitrary for the same reason; the estimators choose it so that `running_var` is one.
    running_mean : ndarray of shape (n_neurons,)
        Mean of ``X @ hidden_weights`` over the (weighted) training rows.
    running_var : ndarray of shape (n_neurons,)
        Its biased variance (division by n), positive.
    bn_weight : ndarray of shape (n_neurons,)
        Scale of batch normalization, in the units of PyTorch. The paper normalizes by the 2-norm over the
        batch instead of the standard deviation: its gamma is ``sqrt(n) * bn_weight``.
    bn_bias : ndarray of shape (n_neurons,)
        Shift of batch normalization; the paper's alpha is ``sqrt(n) * bn_bias``.
    output_weights : ndarray of shape (n_neurons, n_outputs)
        Weights of the output layer.
    intercept : ndarray of shape (n_outputs,)
        Bias of the output layer, zero for the network of the paper.

    Raises
    ------
    ValueError
        If the shapes do not agree.

    See Also
    --------
    BatchNormAfterReLUNetwork : The same with batch normalization after the ReLU.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn import BatchNormNetwork
    >>> network = BatchNormNetwork(
    ...     hidden_weights=np.array([[1.0, -1.0]]),
    ...     running_mean=np.array([2.0, -2.0]),
    ...     running_var=np.array([4.0, 4.0]),
    ...     bn_weight=np.array([2.0, 2.0]),
    ...     bn_bias=np.array([0.0, 0.0]),
    ...     output_weights=np.array([[1.0], [1.0]]),
    ...     intercept=np.array([10.0]),
    ... )
    >>> network.forward(np.array([[0.0], [2.0], [5.0]]))
    array([[12.],
           [10.],
           [13.]])
    """

    hidden_weights: NDArray[Any]
    running_mean: NDArray[Any]
    running_var: NDArray[Any]
    bn_weight: NDArray[Any]
    bn_bias: NDArray[Any]
    output_weights: NDArray[Any]
    intercept: NDArray[Any]
    bn_position: ClassVar[str] = "before"

    def __post_init__(self) -> None:
        """Refuse arrays whose shapes do not agree."""
        if np.ndim(self.hidden_weights) != 2 or np.ndim(self.output_weights) != 2:
            raise ValueError(
                "hidden_weights and output_weights must be 2D arrays. Got arrays of shape "
                f"{np.shape(self.hidden_weights)} and {np.shape(self.output_weights)} instead."
            )
        n_neurons, n_outputs = self.output_weights.shape
        expected = {
            "hidden_weights": (len(self.hidden_weights), n_neurons),
            **dict.fromkeys(("running_mean", "running_var", "bn_weight", "bn_bias"), (n_neurons,)),
            "intercept": (n_outputs,),
        }
        for name, shape in expected.items():
            if np.shape(getattr(self, name)) != shape:
                raise ValueError(
                    f"{name} must be of shape {shape} to match output_weights of shape "
                    f"{self.output_weights.shape}. Got an array of shape {np.shape(getattr(self, name))} "
                    "instead."
                )

    def forward(self, X: ArrayLike) -> NDArray[Any]:
        """Compute the output of the network, row by row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Any rows, in the units of the training data.

        Returns
        -------
        ndarray of shape (n_samples, n_outputs)
            The outputs, in the dtype that `X` and the weights promote to.
        """
        X = np.asarray(X)
        dtype = np.result_type(X.dtype, self.hidden_weights.dtype)
        scale = self.bn_weight / np.sqrt(self.running_var)
        out = np.empty((len(X), len(self.intercept)), dtype=dtype)
        for rows in row_blocks(len(X), len(self.bn_weight)):
            H = X[rows] @ self.hidden_weights
            if self.bn_position == "after":
                np.maximum(H, 0, out=H)
            # The mean goes first: folded into the bias it would cancel digits where it is large.
            H -= self.running_mean
            H *= scale
            H += self.bn_bias
            if self.bn_position == "before":
                np.maximum(H, 0, out=H)
            np.matmul(H, self.output_weights, out=out[rows])
        out += self.intercept
        return out

    def objective(
        self,
        X: ArrayLike,
        Y: ArrayLike,
        beta: float,
        sample_weight: ArrayLike | None = None,
        loss: LossFunction = squared_error,
    ) -> float:
        r"""Compute the training objective of the paper by a forward pass.

        .. math:: \sum_i w_i \ell(f(x_i), y_i)
                  + \frac\beta2 \sum_j (\gamma_j^2 + \alpha_j^2 + \|v_j\|^2)

        with ``gamma = sqrt(n) * bn_weight``, ``alpha = sqrt(n) * bn_bias``, ``v`` the rows of
        `output_weights` and n the sum of the weights. The intercept is not penalised.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            The training rows: the objective is that of the paper where the running statistics are theirs.
        Y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            The targets.
        beta : float
            Weight decay, on the sum over rows.
        sample_weight : array-like of shape (n_samples,), optional
            Weights of the rows; one each by default.
        loss : callable, default=skcvxbn.losses.squared_error
            From targets of shape (n_samples, n_outputs) and weights to the loss.

        Returns
        -------
        float
            The objective, computed in float64 whatever the dtype of the network.
        """
        X = np.asarray(X)
        Y = np.asarray(Y, dtype=np.float64).reshape(len(X), len(self.intercept))
        weight = np.ones(len(X)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        precise = replace(self, **{f.name: getattr(self, f.name).astype(np.float64) for f in fields(self)})
        value = 0.0
        for rows in row_blocks(len(X), max(X.shape)):
            output = np.sqrt(weight[rows, None]) * precise.forward(X[rows])
            value += loss(Y[rows], weight[rows]).value(output)
        return value + 0.5 * beta * precise.penalty(float(weight.sum()))

    def penalty(self, n_rows: float) -> float:
        r"""Compute the sum of squares that weight decay multiplies, twice over.

        Parameters
        ----------
        n_rows : float
            Number of training rows, each counted with its weight.

        Returns
        -------
        float
            :math:`\sum_j (\gamma_j^2 + \alpha_j^2 + \|v_j\|^2)`, computed in float64.
        """
        gamma_alpha_v = (M.astype(np.float64) for M in (self.bn_weight, self.bn_bias, self.output_weights))
        gamma, alpha, v = (float(np.vdot(M, M)) for M in gamma_alpha_v)
        return n_rows * (gamma + alpha) + v

    def to_torch(self) -> Any:
        """Export the network to PyTorch.

        Returns
        -------
        torch.nn.Sequential
            ``Linear, BatchNorm1d, ReLU, Linear``, or in the order of the subclass, in evaluation mode, on
            the CPU and in the dtype of the weights; it agrees with `forward` to rounding. The parameters
            are copies. A network without neurons gets one whose weights are zero, because PyTorch warns
            about empty layers.

        Raises
        ------
        ImportError
            If PyTorch is not installed.

        Notes
        -----
        ``BatchNorm1d`` has ``eps=0``. For training to go on from here set a positive one: it changes the
        network little, because `running_var` is one.
        """
        try:
            import torch
        except ImportError as error:
            raise ImportError("to_torch requires PyTorch, which `pip install torch` installs.") from error
        if not self.bn_weight.size:
            return self._with_idle_neuron().to_torch()
        n_features, n_neurons = self.hidden_weights.shape
        dtype = torch.from_numpy(self.hidden_weights[:0].copy()).dtype
        # skip_init leaves the global random state of PyTorch alone: nothing is drawn.
        create = torch.nn.utils.skip_init
        normalization = torch.nn.BatchNorm1d(n_neurons, eps=0.0, dtype=dtype)
        middle = [normalization, torch.nn.ReLU()]
        module = torch.nn.Sequential(
            create(torch.nn.Linear, n_features, n_neurons, bias=False, dtype=dtype),
            *(middle if self.bn_position == "before" else reversed(middle)),
            create(torch.nn.Linear, n_neurons, len(self.intercept), dtype=dtype),
        )
        position = 1 if self.bn_position == "before" else 2
        state = {
            "0.weight": self.hidden_weights.T,
            f"{position}.weight": self.bn_weight,
            f"{position}.bias": self.bn_bias,
            f"{position}.running_mean": self.running_mean,
            f"{position}.running_var": self.running_var,
            f"{position}.num_batches_tracked": np.array(1),
            "3.weight": self.output_weights.T,
            "3.bias": self.intercept,
        }
        module.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in state.items()})
        return module.eval()

    def _with_idle_neuron(self) -> BatchNormNetwork:
        """The same function with one neuron that is zero everywhere."""
        dtype = self.hidden_weights.dtype
        zero, one = np.zeros(1, dtype), np.ones(1, dtype)
        hidden = np.zeros((len(self.hidden_weights), 1), dtype)
        output = np.zeros((1, len(self.intercept)), dtype)
        return type(self)(hidden, zero, one, zero, zero, output, self.intercept)


class BatchNormAfterReLUNetwork(BatchNormNetwork):
    r"""A two-layer ReLU network with batch normalization after the ReLU, in evaluation mode.

    With ``h = relu(X @ hidden_weights)`` the output is

    ``((h - running_mean) / sqrt(running_var) * bn_weight + bn_bias) @ output_weights + intercept`` .

    The parameters are those of :class:`BatchNormNetwork`; the running statistics are those of ``h``.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.network import BatchNormAfterReLUNetwork
    >>> one, zero = np.ones(1), np.zeros(1)
    >>> network = BatchNormAfterReLUNetwork(np.eye(1), one, one, 2 * one, zero, np.eye(1), zero)
    >>> network.forward(np.array([[-5.0], [3.0]]))
    array([[-2.],
           [ 4.]])
    """

    bn_position: ClassVar[str] = "after"


def row_blocks(n_rows: int, width: int) -> Iterator[slice]:
    """Yield slices of the rows of a matrix such that a block holds a bounded number of entries.

    Parameters
    ----------
    n_rows : int
        Number of rows.
    width : int
        Number of columns of the widest matrix that is made from a block.

    Yields
    ------
    slice
        The next rows.

    Examples
    --------
    >>> from skcvxbn.network import row_blocks
    >>> list(row_blocks(3, 5))
    [slice(0, 838860, None)]
    """
    step = max(_BLOCK_ENTRIES // max(width, 1), 1)
    for start in range(0, n_rows, step):
        yield slice(start, start + step)
