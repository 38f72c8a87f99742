"""The first network of neuron generation: random neurons, trained until most are where they are needed."""

from __future__ import annotations

import numpy as np

from skcvxbn.arrays import Array, in_eights
from skcvxbn.solvers.base import Options, Problem
from skcvxbn.solvers.descent import descend, random_network, step_work
from skcvxbn.solvers.stochastic import has_batches, train_on_batches

# Widths of the rounded kinks, and steps of a stage.
_WIDTHS, _STEPS = (0.5, 0.25, 0.12, 0.06, 0.03), 80
# With several outputs and strong regularization wide kinks merge what should stay apart.
_SEVERAL_WIDTHS = (0.1, 0.05, 0.03)
# Multiplications of a descent step, at this tolerance, from which on steps are counted: fewer stages, and
# shorter ones.
_DEAR_STEP, _DEAR_TOL = 1e9, 1e-4
_DEAR_WIDTHS, _DEAR_STEPS = (0.5, 0.1, 0.02), 60
# What is left to descent after training on batches.
_LAST_WIDTHS, _LAST_DEAR_STEPS = (0.03,), 10
# A stage ends when ten steps together gain less than this, or than this share of the tolerance.
_TOL, TOL_SHARE = 1e-4, 0.02
# Number of neurons: more where the regularisation is weak, fewer where each is dear, and for one output where
# batches lead them to better places.
_WIDTH, _WIDTH_AFTER_BATCHES, _LEAST_WIDTH, _LARGEST_WIDTH, _DEAREST_STEP = 48, 12, 128, 512, 2e10
# So many times the largest width where several outputs share the neurons, from this tolerance on.
_SEVERAL_TIMES, _TIGHT = 2, 1e-4
# From this tolerance on half as many will do.
_LOOSE = 3e-2


def first_network(problem: Problem, options: Options) -> tuple[Array, Array, float]:
    """Train a network from random neurons.

    Parameters
    ----------
    problem : Problem
        The training problem, in units in which outputs and dual points are of like size. Its precision is
        that of the arithmetic.
    options : Options
        `tol` says how dear a step may be, `max_neurons` how wide the network, `deadline` when to stop.

    Returns
    -------
    S, V : arrays of shape (rank + 1, n_neurons) and (n_neurons, n_outputs)
        The network.
    width : float
        Half width of the rounded kinks that it ended on.
    """
    S, V = random_network(problem, _size(problem, options), options.rng)
    n_neurons, n_outputs = V.shape
    widths: tuple[float, ...] = _WIDTHS
    n_steps, dear = _STEPS, is_dear(problem, n_neurons, options.tol)
    if has_batches(problem):
        S, V = train_on_batches(problem, S, V, options.rng, deadline=options.deadline)
        widths, n_steps = _LAST_WIDTHS, _LAST_DEAR_STEPS if dear else _STEPS
    elif dear:
        widths, n_steps = _DEAR_WIDTHS, _DEAR_STEPS
    elif n_outputs > 1 and n_neurons < _LARGEST_WIDTH:
        widths = _SEVERAL_WIDTHS
    tol = max(_TOL, TOL_SHARE * options.tol)
    S, V = descend(problem, S, V, widths=widths, n_steps=n_steps, tol=tol, deadline=options.deadline)
    return S, V, widths[-1]


def is_dear(problem: Problem, n_neurons: int, tol: float) -> bool:
    """Whether steps of descent have to be counted at this tolerance."""
    return step_work(problem, n_neurons) > _DEAR_STEP * min(_DEAR_TOL / tol, 1.0)


def _size(problem: Problem, options: Options) -> int:
    strength = problem.beta / max(problem.length(problem.zero.R), 1e-30)
    few_will_do = problem.n_outputs == 1 and has_batches(problem)
    wanted = (_WIDTH_AFTER_BATCHES if few_will_do else _WIDTH) / np.sqrt(strength)
    largest = _DEAREST_STEP / step_work(problem, 1)
    tight = problem.n_outputs > 1 and options.tol <= _TIGHT
    most = _SEVERAL_TIMES * _LARGEST_WIDTH if tight else _LARGEST_WIDTH
    size = int(np.clip(min(wanted, largest), _LEAST_WIDTH, most))
    if options.tol >= _LOOSE:
        size //= 2
    size = in_eights(size)
    return size if options.max_neurons is None else min(size, options.max_neurons)
