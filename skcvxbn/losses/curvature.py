"""Hessians of the losses: a positive semidefinite block for every row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from skcvxbn.arrays import Array, identity, namespace, row_sums


class Curvature(ABC):
    """``W``, as a product ``M M^T`` of its root."""

    @abstractmethod
    def root(self, R: Array) -> Array:
        """``M R`` for `R` of shape (n_samples, n_outputs)."""

    @abstractmethod
    def root_transposed(self, F: Array) -> Array:
        """``M^T F``."""

    @abstractmethod
    def gram(self, H: Array, U: Array) -> Array:
        """Inner products ``sum_i h_ij h_ik u_j^T W_i u_k`` of the columns ``h_j u_j^T``."""

    @abstractmethod
    def along(self, direction: Array, n_outputs: int) -> Array:
        """``E^T W E`` for the columns ``E`` that put `direction` into one output each."""

    @abstractmethod
    def cross(self, direction: Array, H: Array, U: Array) -> Array:
        """``E^T W`` times the columns ``h_j u_j^T``, of shape (n_outputs, n_columns)."""

    @abstractmethod
    def rows(self, which: slice) -> Curvature:
        """Blocks of some of the rows."""

    @property
    @abstractmethod
    def largest(self) -> float:
        """Upper bound of the eigenvalues."""

    def __matmul__(self, F: Array) -> Array:
        """``W F``."""
        return self.root(self.root_transposed(F))


@dataclass(frozen=True)
class Diagonal(Curvature):
    """The same or another weight for every output, none coupled to another.

    Parameters
    ----------
    weights : ndarray of shape (n_samples, n_outputs) or (n_samples, 1)
        The diagonal.
    """

    weights: Array

    def root(self, R: Array) -> Array:
        """``M R``."""
        return np.sqrt(self.weights) * R

    def root_transposed(self, F: Array) -> Array:
        """``M^T F``."""
        return np.sqrt(self.weights) * F

    def gram(self, H: Array, U: Array) -> Array:
        """Inner products of columns."""
        roots = np.sqrt(self.weights)
        if self.weights.shape[1] == 1:
            H = roots * H
            return (H.T @ H) * (U @ U.T)
        gram = np.zeros((H.shape[1],) * 2, dtype=H.dtype)
        for root, u in zip(roots.T, U.T, strict=True):
            weighted = root[:, None] * H * u
            gram += weighted.T @ weighted
        return gram

    def along(self, direction: Array, n_outputs: int) -> Array:
        """``E^T W E``."""
        return (direction**2 @ self.weights) * identity(n_outputs, self.weights)

    def cross(self, direction: Array, H: Array, U: Array) -> Array:
        """``E^T W`` times columns."""
        return ((direction[:, None] * self.weights).T @ H) * U.T

    def rows(self, which: slice) -> Diagonal:
        """Blocks of some of the rows."""
        return Diagonal(self.weights[which])

    @property
    def largest(self) -> float:
        """Largest eigenvalue."""
        return float(self.weights.max(initial=0.0))


@dataclass(frozen=True)
class Categorical(Curvature):
    r"""The covariance of an indicator of classes: :math:`W_i = c_i (\mathrm{diag}(p_i) - p_i p_i^T)`.

    With :math:`r = \sqrt p`, a unit vector, :math:`M = \sqrt c\, \mathrm{diag}(r) (I - r r^T)` is a root.

    Parameters
    ----------
    P : ndarray of shape (n_samples, n_outputs)
        Probabilities.
    scale : ndarray of shape (n_samples, 1)
        ``c``.
    """

    P: Array
    scale: Array

    def root(self, R: Array) -> Array:
        """``M R``."""
        r = np.sqrt(self.P)
        return np.sqrt(self.scale) * r * (R - r * row_sums(r * R))

    def root_transposed(self, F: Array) -> Array:
        """``M^T F``."""
        r = np.sqrt(self.P)
        F = r * F
        return np.sqrt(self.scale) * (F - r * row_sums(r * F))

    def gram(self, H: Array, U: Array) -> Array:
        """Inner products of columns."""
        H = np.sqrt(self.scale) * H
        inner = H * (self.P @ U.T)
        gram = -(inner.T @ inner)
        for root, u in zip(np.sqrt(self.P).T, U.T, strict=True):
            weighted = root[:, None] * H * u
            gram += weighted.T @ weighted
        return gram

    def along(self, direction: Array, n_outputs: int) -> Array:
        """``E^T W E``."""
        del n_outputs
        weighted = direction[:, None] ** 2 * self.scale * self.P
        sums = namespace(weighted).sum(weighted, axis=0)
        return sums * identity(self.P.shape[1], self.P) - weighted.T @ self.P

    def cross(self, direction: Array, H: Array, U: Array) -> Array:
        """``E^T W`` times columns."""
        weighted = (direction[:, None] * self.scale * self.P).T
        return (weighted @ H) * U.T - weighted @ (H * (self.P @ U.T))

    def rows(self, which: slice) -> Categorical:
        """Blocks of some of the rows."""
        return Categorical(self.P[which], self.scale[which])

    @property
    def largest(self) -> float:
        """Upper bound of the eigenvalues."""
        return float(0.5 * self.scale.max(initial=0.0))
