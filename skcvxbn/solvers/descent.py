"""Descent on the network itself, problem (N), with kinks that are smoothed less and less.

In whitened coordinates, and with the balanced penalty ``beta/2 (||s||^2 + ||v||^2)``, whose minimum over
rescalings is ``beta ||s|| ||v||``, a wide network descends to the neighbourhood of the global optimum in
some hundred quasi-Newton steps. On the ReLU itself it would stall, because optimal neurons sit on its
kinks. So the ReLU is rounded off over ``|a_k^T s| <= width_j`` and the width lowered in stages: every stage
is a smooth problem that starts next to its solution. Kinks of the loss are rounded along with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from scipy import linalg

from skcvxbn import in_place
from skcvxbn.arrays import (
    Array,
    concat,
    eps,
    in_eights,
    inner,
    lengths,
    like,
    namespace,
    numpy_dtype,
    row_blocks,
    take,
    to_numpy,
    zeros,
)
from skcvxbn.solvers.base import Problem, balanced, without_negligible

_MEMORY = 20
# Between two stages neurons below this share of the largest leave: they do not come back.
_NEGLIGIBLE = 1e-6
# Steps between two looks at the progress.
_STRIDE = 10


def random_network(problem: Problem, n_neurons: int, rng: np.random.RandomState) -> tuple[Array, Array]:
    """A network of random neurons whose outputs have about a third of the size of the dual point at zero."""
    rank, n_outputs = problem.A.shape[1], problem.n_outputs
    directions = rng.standard_normal((rank, n_neurons))
    weights = rng.standard_normal((n_neurons, n_outputs))
    directions /= np.linalg.norm(directions, axis=0)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    dtype = numpy_dtype(problem.A)
    S, V = (like(M.astype(dtype), problem.A) for M in (directions, weights))
    root = math.sqrt(0.3 * problem.length(problem.zero.R) / max(problem.length(problem.hidden(S) @ V), 1e-12))
    return S * root, V * root


def step_work(problem: Problem, n_neurons: int) -> float:
    """Multiplications and additions of a step of descent, roughly."""
    n_samples, rank = problem.shape
    return n_samples * n_neurons * (4.0 * rank + 6.0 * problem.n_outputs)


def descend(
    problem: Problem,
    S: Array,
    V: Array,
    *,
    widths: tuple[float, ...],
    n_steps: int,
    tol: float = 0.0,
    bias: Array | None = None,
    deadline: float = math.inf,
) -> tuple[Array, Array]:
    """Improve a network by quasi-Newton steps (L-BFGS, Armijo line search) on ever sharper kinks.

    Parameters
    ----------
    problem : Problem
        The training problem, in units in which outputs and dual points are of like size. Its precision is
        that of the arithmetic.
    S, V : array of shape (rank + 1, n_neurons) and (n_neurons, n_outputs)
        The network to start from; left untouched.
    widths : tuple of float
        Half width of the rounded kink in each stage, in units of the typical ``|a_k^T s|`` of the neuron,
        and inverse of the largest curvature of the loss.
    n_steps : int
        Largest number of steps of a stage.
    tol : float
        A stage ends when ten steps together lower its objective by less than this share.
    bias : array of shape (n_outputs,), optional
        Coefficients of the bias' direction, a guess.
    deadline : float
        Value of ``time.monotonic()`` after which no step is begun.

    Returns
    -------
    S, V : tuple of arrays
        The improved network, balanced, without the neurons that died out on the way.

    Raises
    ------
    Interrupted
        A KeyboardInterrupt that carries the network reached.
    """
    S, V = balanced(S, V)
    for width in widths:
        S, V = _alive(S, V)
        if V.shape[0] == 0:
            break
        smooth = _SmoothNetwork(problem.smoothed(width), S, V, width)
        try:
            late = partial(problem.rows.past, deadline)
            x = _minimise(smooth, smooth.start(S, V, bias), n_steps, tol, late)
        except _Stopped as stop:
            raise Interrupted(balanced(*smooth.unpack(stop.x))) from None
        S, V = balanced(*smooth.unpack(x))
        bias = smooth.bias(x)
    return S, V


def _alive(S: Array, V: Array) -> tuple[Array, Array]:
    """Leave out dead neurons, but for those that round up the number of the others to a multiple of eight."""
    alive = without_negligible(S, V, _NEGLIGIBLE)
    sizes = to_numpy(lengths(S, axis=0) * lengths(V, axis=1))
    n_kept = min(in_eights(int(alive.sum())), int((sizes > 0).sum()))
    kept = np.sort(np.argsort(-sizes, kind="stable")[:n_kept])
    return take(S, kept, axis=1), take(V, kept, axis=0)


class Interrupted(KeyboardInterrupt):
    """An interrupt of the user that keeps what had been reached."""

    def __init__(self, network: tuple[Array, Array]) -> None:
        super().__init__()
        self.network = network


class _Stopped(KeyboardInterrupt):
    def __init__(self, x: Array) -> None:
        super().__init__()
        self.x = x


class _SmoothNetwork:
    """Value and gradient of (N) with rounded kinks, as a function of one vector.

    With ``t = a_k^T s / (2 width_j) + 1/2`` and ``d = min(max(t, 0), 1)`` the rounded ReLU is
    ``width_j d (2t - d)`` and its slope is ``d``.
    """

    def __init__(self, problem: Problem, S: Array, V: Array, width: float) -> None:
        self.problem, self.shape = problem, (tuple(S.shape), tuple(V.shape))
        # The best bias is known at once where the loss is quadratic; elsewhere it moves with the neurons.
        self.n_bias = problem.n_outputs if problem.fit_intercept and not problem.loss.quadratic else 0
        self.direction = problem.A[:, -1:]
        self.widths = width / math.sqrt(problem.shape[0]) * lengths(S, axis=0)
        # Rows that are taken through the network together, and memory for what is kept of them.
        self.blocks = row_blocks(problem.A)
        table = problem.A.shape[0], V.shape[0]
        self.hidden, self.slope = zeros(table, S), zeros(table, S)
        self.block = zeros((self.blocks[0].stop, V.shape[0]), S)
        self.F = zeros(problem.loss.shape, S)

    def pack(self, S: Array, V: Array, bias: Array) -> Array:
        xp = namespace(S)
        return concat([xp.reshape(S, (-1,)), xp.reshape(V, (-1,)), bias], axis=0)

    def start(self, S: Array, V: Array, guess: Array | None = None) -> Array:
        """Pack a network with the best bias it can have, of which there may be a guess."""
        if not self.n_bias:
            return self.pack(S, V, zeros((0,), S))
        return self.pack(S, V, self.problem.output(S, V, guess).bias)

    def bias(self, x: Array) -> Array | None:
        return x[x.shape[0] - self.n_bias :] if self.n_bias else None

    def unpack(self, x: Array) -> tuple[Array, Array]:
        xp, (hidden, output) = namespace(x), self.shape
        first, last = hidden[0] * hidden[1], x.shape[0] - self.n_bias
        return xp.reshape(x[:first], hidden), xp.reshape(x[first:last], output)

    def __call__(self, x: Array) -> tuple[float, Array]:
        problem = self.problem
        S, V = self.unpack(x)
        n_weights = x.shape[0] - self.n_bias
        F, weights = self._forward(S / (2 * self.widths), V * self.widths[:, None]), x[:n_weights]
        square = inner(weights, weights)
        if self.n_bias:
            F += self.direction * x[n_weights:]
            value, R = problem.loss.evaluate(F)
        else:
            output = problem.at(F)
            value, R = output.value, output.R
        gradient_S, gradient_V = self._backward(R, V)
        gradient_bias = (self.direction[:, 0] @ R)[: self.n_bias]
        packed = self.pack(gradient_S, gradient_V * self.widths[:, None], gradient_bias)
        gradient = -problem.rows.total(packed)
        gradient[:n_weights] += problem.beta * weights
        return value + 0.5 * problem.beta * float(square), gradient

    def _forward(self, S: Array, V: Array) -> Array:
        """Output of the rounded neurons in units of their widths; it keeps their values and slopes."""
        for rows in self.blocks:
            H, D = self.hidden[rows, :], self.slope[rows, :]
            T = self.block[: H.shape[0], :]
            in_place.matmul(self.problem.A[rows, :], S, out=T)
            T += 0.5
            in_place.clip(T, 1.0, out=D)
            in_place.subtract(T, D, out=H)
            H += T
            H *= D
            in_place.thin_matmul(H, V, out=self.F[rows, :])
        return self.F

    def _backward(self, R: Array, V: Array) -> tuple[Array, Array]:
        """Inner products of `R` with the derivatives of the output."""
        gradient_S, gradient_V = zeros((V.shape[0], self.problem.A.shape[1]), V), zeros(V.shape, V)
        for rows in self.blocks:
            A, taken = self.problem.A[rows, :], R[rows, :]
            H, slope = self.hidden[rows, :], self.slope[rows, :]
            moved = self.block[: H.shape[0], :]
            gradient_V += (taken.T @ H).T
            # These ways round NumPy's libraries are faster.
            if V.shape[1] == 1:
                gradient_S += V * (slope.T @ (A * taken))
            else:
                in_place.matmul(taken, V.T, out=moved)
                moved *= slope
                gradient_S += moved.T @ A
        return gradient_S.T, gradient_V


def _minimise(
    evaluate: Callable[[Array], tuple[float, Array]],
    x: Array,
    n_steps: int,
    tol: float,
    late: Callable[[], bool],
) -> Array:
    memory = _Memory(x)
    try:
        value, gradient = evaluate(x)
        reference = value
        for step_number in range(1, n_steps + 1):
            moved = _step(evaluate, x, value, gradient, memory.direction(gradient))
            if moved is None or late():
                break
            new_x, value, new_gradient = moved
            memory.update(new_x - x, new_gradient - gradient, new_gradient)
            x, gradient = new_x, new_gradient
            if step_number % _STRIDE == 0:
                if reference - value <= tol * abs(value):
                    break
                reference = value
    except KeyboardInterrupt:
        raise _Stopped(x) from None
    return x


def _step(
    evaluate: Callable[[Array], tuple[float, Array]],
    x: Array,
    value: float,
    gradient: Array,
    direction: Array,
) -> tuple[Array, float, Array] | None:
    """Backtrack along `direction` until Armijo's rule holds; None where only rounding could make it."""
    slope = float(gradient @ direction)
    step, least = 1.0, eps(x) * abs(value)
    while -step * slope > least:
        new_x = x + step * direction
        new_value, new_gradient = evaluate(new_x)
        if new_value <= value + 1e-4 * step * slope:
            return new_x, new_value, new_gradient
        step /= 2
    return None


class _Memory:
    """Inverse Hessian of limited memory in compact form (Byrd, Nocedal and Schnabel, 1994).

    With steps ``P``, changes of the gradient ``Q`` as rows, ``T`` the upper triangle of ``P Q^T``, ``E`` its
    diagonal and ``c`` the last curvature scale, the inverse Hessian is
    ``c I + [P^T, c Q^T] [[T^-T (E + c Q Q^T) T^-1, -T^-T], [-T^-1, 0]] [P; c Q]``: few products of
    matrices where the two-loop recursion would take many of vectors. All inner products that a step needs
    are those of ``P`` and ``Q`` with three vectors: one product, of which the numbers go to the host.
    """

    def __init__(self, x: Array) -> None:
        # One row more than are in use: a step is written down before it is known whether it is of use.
        self.size = _MEMORY + 1
        self.steps_and_changes = zeros((2 * self.size, x.shape[0]), x)
        self.PQ, self.QQ = (np.zeros((self.size, self.size)) for _ in range(2))
        self.order: list[int] = []
        self.along = np.zeros(2 * self.size)

    def update(self, step: Array, change: Array, gradient: Array) -> None:
        """Take in a step, the change of the gradient along it, and the gradient it has led to."""
        new, size = min(set(range(self.size)) - set(self.order)), self.size
        self.steps_and_changes[new, :] = step
        self.steps_and_changes[size + new, :] = change
        vectors = namespace(step).stack([step, change, gradient])
        products = to_numpy(self.steps_and_changes @ vectors.T).astype(np.float64)
        self.along = products[:, 2]
        curvature = products[new, 1]
        if curvature <= 1e-10 * np.sqrt(products[new, 0] * products[size + new, 1]):
            return
        self.order = [*self.order[-_MEMORY + 1 :], new]
        self.PQ[:, new], self.PQ[new] = products[:size, 1], products[size:, 0]
        self.QQ[:, new] = self.QQ[new] = products[size:, 1]

    def direction(self, gradient: Array) -> Array:
        """Direction of the next step, from the gradient that the last one has led to."""
        rows = self.order
        if not rows:
            return -gradient / max(float(inner(gradient, gradient)) ** 0.5, 1e-30)
        which = np.ix_(rows, rows)
        PQ, QQ = self.PQ[which], self.QQ[which]
        scale = float(PQ[-1, -1] / QQ[-1, -1])
        p, q = self.along[: self.size][rows], self.along[self.size :][rows]
        T = np.triu(PQ)
        # LAPACK itself: around it SciPy takes more time than the twenty rows do.
        inside = linalg.lapack.dtrtrs(T, p)[0]
        outside = linalg.lapack.dtrtrs(T, PQ.diagonal() * inside + scale * (QQ @ inside - q), trans=1)[0]
        weights = np.zeros((2, self.size))
        weights[0, rows], weights[1, rows] = outside, -scale * inside
        weights = like(weights.ravel().astype(numpy_dtype(gradient)), gradient)
        return -(weights @ self.steps_and_changes + scale * gradient)
