"""A round of descent: on the output weights alone, on all weights, and on the output weights again.

Descent finds where neurons belong, but not which of several that are much alike should have how much of the
output. So its dual point violates the constraints of its own neurons: on digits by a thousandth after a
round, and by a hundred-thousandth once their output weights are solved for.
"""

from __future__ import annotations

import numpy as np

from skcvxbn.arrays import Array, astype, concat, take, zeros
from skcvxbn.solvers.base import Options, Problem, balanced, without_negligible
from skcvxbn.solvers.descent import descend
from skcvxbn.solvers.first_network import TOL_SHARE, first_network, is_dear
from skcvxbn.solvers.neurons import Neurons, gather
from skcvxbn.solvers.reweighting import reweighted
from skcvxbn.solvers.search import Candidates

# Widths of the rounded kinks of a round, and where it takes few and short stages.
_WIDTHS, _STEPS = (0.03, 0.008, 0.002), 60
_SEVERAL_WIDTHS = (0.1, 0.03, 0.01, 0.003)
_DEAR_WIDTHS, _DEAR_STEPS = (0.02, 0.005), 30
# A stage ends when ten steps together gain less than this.
_TOL = 1e-5
# Neurons below this share of the largest are dead, and from this cosine on two are counted as one.
_NEGLIGIBLE, _ONE = 1e-5, 0.9999


class Descent:
    """Descent on a training problem, in single precision.

    Parameters
    ----------
    problem : Problem
        The training problem, in units in which outputs and dual points are of like size.
    single : Problem
        The same in single precision.
    options : Options
        Tolerance, limits and the source of randomness.
    """

    def __init__(self, problem: Problem, single: Problem, options: Options) -> None:
        self._problem, self._single, self._options = problem, single, options

    def first(self, idle: Neurons, rounding: float) -> Neurons:
        """Train the first network.

        Parameters
        ----------
        idle : Neurons
            The network without a neuron.
        rounding : float
            Half width of the rounded kinks of the loss.

        Returns
        -------
        Neurons
            Those of the network.
        """
        S, V, width = first_network(self._single.smoothed(rounding), self._options)
        return self._settled(S, V, max(width, rounding), astype(idle.bias, np.float32), _NEGLIGIBLE)

    def round(
        self, neurons: Neurons, rounding: float, negligible: float, newcomers: Candidates | None = None
    ) -> Neurons:
        """Improve neurons.

        Parameters
        ----------
        neurons : Neurons
            The neurons, newcomers among them.
        rounding : float
            Half width of the rounded kinks of the loss.
        negligible : float
            Neurons below this share of the largest leave.
        newcomers : Candidates, optional
            Those that joined last. Some are led away, over wide kinks, from narrow maxima where they are
            needed: these get another chance.

        Returns
        -------
        Neurons
            The improved ones, with the best output weights that their hidden directions can have.
        """
        widths = self._widths(len(neurons))
        last = max(widths[-1], rounding)
        # Through double precision: the product of the scales of a newcomer is small.
        S, V = balanced(astype(neurons.S, np.float64), astype(neurons.U, np.float64))
        S, V, bias = (astype(M, np.float32) for M in (S, V, neurons.bias))
        S, V, bias = reweighted(self._single.smoothed(last), S, V, bias)
        S, V = descend(
            self._single.smoothed(rounding),
            S,
            V,
            widths=widths,
            n_steps=_DEAR_STEPS if self._is_dear(len(neurons)) else _STEPS,
            tol=max(_TOL, TOL_SHARE * self._options.tol),
            bias=bias,
            deadline=self._options.deadline,
        )
        return self._settled(S, V, last, bias, negligible, newcomers)

    def _settled(
        self,
        S: Array,
        V: Array,
        width: float,
        bias: Array,
        negligible: float,
        newcomers: Candidates | None = None,
    ) -> Neurons:
        """Neurons that descent has led so near to kinks as it tells them apart, with their best weights."""
        alive = np.flatnonzero(without_negligible(S, V, _NEGLIGIBLE))
        S, V, _ = gather(take(S, alive, axis=1), take(V, alive, axis=0), _ONE)
        if newcomers is not None:
            S = concat([S, astype(newcomers.S, np.float32)], axis=1)
            V = concat([V, zeros(newcomers.U.shape, V)], axis=0)
        S, V, bias = reweighted(self._single.smoothed(width), S, V, bias)
        return Neurons.of_network(self._problem, S, V, negligible, width, bias)

    def _widths(self, n_neurons: int) -> tuple[float, ...]:
        if self._is_dear(n_neurons):
            return _DEAR_WIDTHS
        return _SEVERAL_WIDTHS if self._problem.n_outputs > 1 else _WIDTHS

    def _is_dear(self, n_neurons: int) -> bool:
        return is_dear(self._problem, n_neurons, self._options.tol)
