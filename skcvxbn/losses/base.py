"""What a solver may ask of a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Self

import numpy as np

from skcvxbn.arrays import Array, Rows, astype, namespace, positive_part, tiny
from skcvxbn.losses.curvature import Curvature

# From targets of shape (n_samples, n_outputs) and the weights of the rows to the loss.
LossFunction = Callable[[Array, Array], "Loss"]


class Box(NamedTuple):
    """The conjugate of a loss with kinks or linear pieces: a quadratic, on a box.

    The dual objective is ``<R, target> - rounding / 2 ||R||^2`` where ``lower <= R <= upper``.
    """

    target: Array
    rounding: float
    lower: Array
    upper: Array


@dataclass(frozen=True, eq=False)
class Loss(ABC):
    r"""A convex loss, bound to the targets of the training rows.

    It is a sum over rows, :math:`L(F) = \sum_i w_i \ell(f_i, y_i)`, as a function of the weighted output
    ``F``, whose row i is :math:`\sqrt{w_i} f_i`: in these coordinates the data are white whatever the
    weights. Minus its gradient is the dual variable ``R`` of the network's output, the residual where the
    error is squared. The dual objective is :math:`-L^*(-R) = \min_F L(F) + \langle R, F \rangle`.

    Attributes
    ----------
    rows : Rows
        How to sum over the training rows.
    """

    rows: Rows = field(default_factory=Rows, kw_only=True)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Shape of the outputs."""

    @property
    def quadratic(self) -> bool:
        """Whether the curvature is the same everywhere."""
        return False

    @property
    def box(self) -> Box | None:
        """The conjugate, where it is a quadratic on a box."""
        return None

    @abstractmethod
    def evaluate(self, F: Array) -> tuple[float, Array]:
        """Value at the outputs `F`, and the dual point there, minus the gradient."""

    @abstractmethod
    def dual_value(self, R: Array) -> float:
        """Dual objective at `R`: a lower bound of the loss plus the inner product of `R` and the output."""

    @abstractmethod
    def dual_slope(self, R: Array, along: Array) -> float:
        """Derivative of the dual objective at `R` in the direction `along`."""

    @abstractmethod
    def largest_multiple(self, R: Array) -> float:
        """Largest t for which ``t R`` is in the domain of the dual objective."""

    @abstractmethod
    def best_bias(self, F: Array, direction: Array, start: Array | None = None) -> Array:
        """Coefficients b, one an output, for which ``F + direction b^T`` has the least loss.

        Parameters
        ----------
        F : ndarray of shape (n_samples, n_outputs)
            Outputs.
        direction : ndarray of shape (n_samples,)
            Output of a bias of one, in weighted rows: positive, of unit length.
        start : ndarray of shape (n_outputs,), optional
            A guess.
        """

    @abstractmethod
    def curvature(self, F: Array) -> Curvature:
        """Hessian at the outputs `F`, a positive semidefinite block for every row."""

    @abstractmethod
    def row_curvature(self, F: Array) -> Array:
        """Upper bound of the curvature of each row at `F`, of shape (n_samples, 1)."""

    @abstractmethod
    def unit(self, direction: Array | None) -> tuple[float, float]:
        """Units of output and of loss in which both and the dual variable at the start are about one.

        Parameters
        ----------
        direction : ndarray of shape (n_samples,) or None
            That of the bias, if there is one.
        """

    @abstractmethod
    def scaled(self, output: float, value: float) -> Loss:
        """Return the same loss with outputs and values in other units."""

    def astype(self, dtype: Any) -> Self:
        """Return the same loss in another precision."""
        # A bound that overflows is none.
        with np.errstate(over="ignore"):
            return self.mapped(lambda M: astype(M, dtype))

    def mapped(self, function: Callable[[Array], Array]) -> Self:
        """Return the same loss with other arrays, made from its own one by one."""
        own = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return replace(self, **{name: function(M) for name, M in own.items() if hasattr(M, "shape")})

    def smoothed(self, width: float) -> Loss:
        """Return the loss with kinks rounded so that its curvature is at most ``1 / width``.

        In the units of `unit`. The dual point of the smoothed loss is a dual point of the loss.
        """
        del width
        return self

    def value(self, F: Array) -> float:
        """Value at the outputs `F`."""
        return self.evaluate(F)[0]

    @abstractmethod
    def dual(self, F: Array) -> Array:
        """Dual point at the outputs `F`, of those at hand: processes do not wait for one another."""

    def trusted(self, dF: Array) -> float:
        """Largest multiple of a move of the outputs over which the loss is close to quadratic."""
        del dF
        return np.inf

    def balanced(self, R: Array, direction: Array) -> Array:
        """Correct a dual point a little, within the domain, so that its columns are orthogonal to the bias.

        Of the positive and the negative part of a column the larger one is shortened, which stays in any box
        that holds zero.
        """
        xp, safe = namespace(R), tiny(R)
        sums = self.rows.total(xp.stack([direction @ positive_part(R), direction @ positive_part(-R)]))
        up, down = sums[0, :], sums[1, :]
        level = xp.minimum(up, down)
        return R * xp.where(R > 0, level / xp.clip(up, min=safe), level / xp.clip(down, min=safe))


def x_log_x(x: Array) -> Array:
    """``x log(x)``, which is zero at zero."""
    xp = namespace(x)
    return xp.where(x > 0, x * xp.log(xp.where(x > 0, x, 1.0)), 0.0)
