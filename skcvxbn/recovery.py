"""From a solution in whitened coordinates to the network, and back (Appendix C.3 of the paper)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from skcvxbn.losses import Loss
from skcvxbn.network import BatchNormNetwork
from skcvxbn.solvers.base import Solution, balanced
from skcvxbn.whitening import Whitening

Floats = NDArray[np.float64]


def recover_network(
    solution: Solution, whitening: Whitening, loss: Loss, fit_intercept: bool
) -> BatchNormNetwork:
    r"""Turn a solution of the whitened problem into a batch-norm network.

    Neuron j of the solution contributes :math:`(A s_j)_+ v_j^T` and costs
    :math:`\beta \|s_j\| \|v_j\|`. Balanced so that :math:`\|s_j\| = \|v_j\|`, and with
    :math:`s_j = [\gamma_j u_j, \alpha_j]`, :math:`\|u_j\| = 1`, it is the hidden neuron of weights
    :math:`\Sigma^{-1} V u_j`, batch-norm scale :math:`\gamma_j` and shift :math:`\alpha_j`, and it costs
    :math:`\frac\beta2 (\gamma_j^2 + \alpha_j^2 + \|v_j\|^2)`: the same.

    Parameters
    ----------
    solution : Solution
        Hidden directions `S` (rank + 1, m) and output weights `V` (m, C), in the units of the targets.
    whitening : Whitening
        The coordinates `S` refers to.
    loss : Loss
        The loss of the weighted outputs.
    fit_intercept : bool
        Whether the network has an output bias; it is the best one for the neurons of the solution.

    Returns
    -------
    BatchNormNetwork
        The network, in the dtype of the whitened data. Neurons that contribute nothing are left out.

    Notes
    -----
    Hidden weights are scaled by ``sqrt(n)``, which makes the variance of ``X @ hidden_weights`` one for
    every neuron: batch normalization then needs no care about its `eps`. A neuron that does not depend
    on the data (:math:`u_j = 0`) has zero hidden weights, and a running variance of one by convention.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.losses import squared_error
    >>> from skcvxbn.recovery import recover_network
    >>> from skcvxbn.solvers.base import Solution
    >>> from skcvxbn.whitening import whiten
    >>> X, Y = np.array([[0.0], [1.0], [2.0]]), np.array([[0.0], [0.0], [2.0]])
    >>> S, V = np.array([[1.0], [0.0]]), np.array([[np.sqrt(2)]])
    >>> solution = Solution(S, V, Y, 0.0, 0.0, "exact", 1, True, "")
    >>> loss = squared_error(Y, np.ones(3))
    >>> network = recover_network(solution, whiten(X), loss, fit_intercept=False)
    >>> bool(np.isclose(network.forward(X).max(), 1.0))
    True
    """
    A, dtype = whitening.A, whitening.A.dtype
    S, V = balanced(solution.S.astype(np.float64), solution.V.astype(np.float64))
    used = np.linalg.norm(S, axis=0) > 0
    S, V = S[:, used], V[used]

    root_n = np.sqrt(whitening.n_rows)
    gamma = np.linalg.norm(S[:-1], axis=0)
    U = S[:-1] / np.where(gamma > 0, gamma, 1.0)
    hidden_weights = (root_n * (whitening.projection @ U)).astype(dtype)
    intercept = np.zeros(V.shape[1])
    if fit_intercept:
        # An output bias b adds sqrt(n) e b^T to the weighted output, e being the last column of A.
        hidden = A @ S.astype(dtype)
        output = np.maximum(hidden, 0, out=hidden) @ V
        intercept = loss.best_bias(output, A[:, -1].astype(np.float64), solution.bias) / root_n
    return BatchNormNetwork(
        hidden_weights=hidden_weights,
        # The weights as they are stored: the mean of the rounded ones, not the rounded mean.
        running_mean=(whitening.mean.astype(np.float64) @ hidden_weights).astype(dtype),
        running_var=np.ones(len(V), dtype=dtype),
        bn_weight=(gamma / root_n).astype(dtype),
        bn_bias=(S[-1] / root_n).astype(dtype),
        output_weights=V.astype(dtype),
        intercept=intercept.astype(dtype),
    )


def network_to_whitened(network: BatchNormNetwork, whitening: Whitening) -> tuple[Floats, Floats]:
    """Express a network in the whitened coordinates of any data: the inverse of `recover_network`.

    Parameters
    ----------
    network : BatchNormNetwork
        A network with as many features as the data.
    whitening : Whitening
        The data, which need not be those that the network was trained on.

    Returns
    -------
    S : ndarray of shape (rank + 1, n_neurons)
        Hidden directions: on the rows of the data, weighted like `whitening.A`, the hidden layer of
        the network is ``(A @ S)_+``.
    V : ndarray of shape (n_neurons, n_outputs)
        Output weights.
    """
    scale = whitening.scale.astype(np.float64)[:, None]
    weights = network.hidden_weights.astype(np.float64)
    slope = network.bn_weight / np.sqrt(network.running_var.astype(np.float64))
    shift = whitening.mean.astype(np.float64) @ weights - network.running_mean
    # The centred rows are U B, where U = (X - mean) @ projection. With columns in units of `scale` both
    # B^T and the projection span the row space, so B is the pseudoinverse of the projection.
    S = np.empty((whitening.rank + 1, len(slope)))
    S[:-1] = np.linalg.lstsq(whitening.projection * scale, weights * scale, rcond=-1)[0] * slope
    S[-1] = np.sqrt(whitening.n_rows) * (network.bn_bias + shift * slope)
    return S, network.output_weights.astype(np.float64)
