"""The best output weights of given hidden directions: a convex problem without arrangements.

Descent moves hidden directions to where they belong long before it balances neurons that are much alike. With
the directions held fixed, what is left is a group lasso with a group for each neuron, over their inner
products: it is solved for at the price of a few steps of descent, and the dual point of its solution violates
the constraint of no neuron.
"""

from __future__ import annotations

import numpy as np

from skcvxbn.arrays import Array, eps, inner, lengths, like, namespace, numpy_dtype, take, tiny, to_numpy
from skcvxbn.solvers.base import Output, Problem, without_negligible
from skcvxbn.solvers.output_weights import ACCURACY, improved_weights

# Weights below this share of the largest are zeros.
NO_WEIGHT = 1e-5
# How often a change of the weights is halved before it is given up, and how many models of a curved loss are
# solved while they lower the objective by more than rounding.
_HALVINGS, _MODELS = 4, 12
# Length of a move next to that of weights, output and dual point, at most.
_FARTHEST = 100.0
# Least curvature of a model, as a share of that of the rows.
_LEAST_SHARE = 0.1


def reweighted(
    problem: Problem, S: Array, V: Array, guess: Array | None = None, accuracy: float = ACCURACY
) -> tuple[Array, Array, Array | None]:
    """Find the best output weights for the hidden directions of a network; neurons that get none leave.

    Parameters
    ----------
    problem : Problem
        The training problem, whose loss has no kinks.
    S, V : array of shape (rank + 1, n_neurons) and (n_neurons, n_outputs)
        The network, of any scaling, without dead neurons.
    guess : array of shape (n_outputs,), optional
        Coefficients of the bias' direction.
    accuracy : float
        Share of their cost to which the pulls at neurons are balanced.

    Returns
    -------
    S, V : tuple of arrays
        Unit hidden directions, and their weights.
    bias : array of shape (n_outputs,)
        Coefficients of the bias' direction.
    """
    S, V, bias = best_weights(problem, S, V, guess, accuracy)
    used = np.flatnonzero(without_negligible(S, V, NO_WEIGHT))
    return take(S, used, axis=1), take(V, used, axis=0), bias


def best_weights(
    problem: Problem, S: Array, V: Array, guess: Array | None = None, accuracy: float = ACCURACY
) -> tuple[Array, Array, Array | None]:
    """Find the same, and keep the neurons that get no weight; see `reweighted`."""
    sizes = lengths(S, axis=0)
    S, V = S / sizes, V * sizes[:, None]
    if V.shape[0] == 0:
        return S, V, guess
    H = problem.hidden(S)
    output = problem.at(H @ V, guess)
    value = output.value + problem.beta * problem.penalty(S, V)
    # For softmax the curvature of the rows is a bound: what a change meets is mostly a tenth to a half of it.
    share = 1.0
    for _ in range(1 if problem.loss.quadratic else _MODELS):
        last = value
        V, output, value, share = _improved(problem, H, V, output, value, share, accuracy)
        if last - value <= eps(V) * abs(value):
            break
    return S, V, output.bias


def _improved(
    problem: Problem, H: Array, V: Array, start: Output, value: float, share: float, accuracy: float
) -> tuple[Array, Output, float, float]:
    """Minimise a model of second order of the loss at these weights, as far as the loss follows it.

    The curvature of the model is a share of that of the rows. Returned last is the share met on the way.
    """
    weight = problem.loss.row_curvature(start.F)
    gram = share * _weighted_gram(problem, H, weight)
    pull = problem.rows.total(H.T @ start.R)
    # As many numbers as pairs of neurons: the model is solved on the host.
    gram, pull, weights = (to_numpy(M).astype(np.float64) for M in (gram, pull, V))
    move = improved_weights(gram, pull + gram @ weights, weights, problem.beta, accuracy) - weights
    # Where the loss is linear its model has no minimum.
    size = float(np.linalg.norm(weights)) + problem.length(start.F) + problem.length(start.R)
    move *= min(1.0, _FARTHEST * size / max(float(np.linalg.norm(move)), tiny(weights)))
    for halving in range(_HALVINGS):
        trial = like((weights + 0.5**halving * move).astype(numpy_dtype(V)), V)
        output = problem.at(H @ trial, start.bias)
        new = output.value + problem.beta * float(namespace(V).sum(lengths(trial, axis=1)))
        if new < value:
            return trial, output, new, _share_met(problem, weight, start, output)
    return V, start, value, share


def _share_met(problem: Problem, weight: Array, start: Output, end: Output) -> float:
    """Mean curvature between two outputs, as a share of that of the rows."""
    dF = end.F - start.F
    met, whole = problem.rows.totals(inner(dF, start.R - end.R), inner(dF, weight * dF))
    return min(max(met / max(whole, tiny(dF)), _LEAST_SHARE), 1.0)


def _weighted_gram(problem: Problem, H: Array, weight: Array) -> Array:
    """Inner products of the columns of `H`, rows weighted, without what the bias reaches."""
    roots = namespace(H).sqrt(weight)
    weighted = roots * H
    if problem.fit_intercept:
        direction = roots[:, 0] * problem.A[:, -1]
        direction /= max(problem.length(direction), tiny(direction))
        weighted -= direction[:, None] * problem.rows.total(direction @ weighted)
    return problem.rows.total(weighted.T @ weighted)
