"""The first network where rows are many: stochastic steps on problem (N), a batch of rows at a time.

A thousand rows show the way from random neurons as well as all of them do, and a step on them costs as much
less. Adam (Kingma and Ba, 2015) takes such steps without a line search. They need a scale instead, and in
whitened coordinates and units of the loss' own there is one for all problems: a neuron is of the order of one
half, so that a weight is of the order of ``1 / sqrt(q)`` if there are q of them. What noise the batches leave
is for the descent that follows.
"""

from __future__ import annotations

import math

import numpy as np

from skcvxbn import in_place
from skcvxbn.arrays import Array, concat, namespace, zeros
from skcvxbn.solvers.base import Problem, balanced
from skcvxbn.solvers.descent import Interrupted

# Rows of a batch: some for every direction, between these limits.
_ROWS_PER_DIRECTION, _LEAST_ROWS, _MOST_ROWS = 8, 512, 2048
# With fewer batches descent on all rows is as fast.
_FEWEST_BATCHES = 8
# Steps; or so often through the rows, if that is more.
_STEPS, _EPOCHS = 1100, 10
# Length of the first steps, in weights. Where more than so many neurons share an output each is smaller, and
# steps are shorter by a power of the ratio: longer ones kill neurons. It falls to zero like a cosine.
_LENGTH, _SHARING, _POWER = 0.025, 43.0, 2 / 3
# What the mean of the gradients and that of their squares forget in a step.
_MEAN, _SQUARE = 0.1, 0.01
# Steps between two looks at the clock.
_STRIDE = 20


def has_batches(problem: Problem) -> bool:
    """Whether the rows are so many that batches of them pay, and every process has some of each batch."""
    n_batches = _n_batches(problem)
    return n_batches >= _FEWEST_BATCHES and min(problem.rows.everyone(problem.A.shape[0])) >= n_batches


def _n_batches(problem: Problem) -> int:
    n_rows, rank = problem.shape
    return n_rows // int(np.clip(_ROWS_PER_DIRECTION * rank, _LEAST_ROWS, _MOST_ROWS))


def train_on_batches(
    problem: Problem, S: Array, V: Array, rng: np.random.RandomState, *, deadline: float = math.inf
) -> tuple[Array, Array]:
    """Improve a network by Adam on batches of rows.

    Parameters
    ----------
    problem : Problem
        The training problem, in units in which outputs and dual points are of like size. Its precision is
        that of the arithmetic.
    S, V : array of shape (rank + 1, n_neurons) and (n_neurons, n_outputs)
        The network to start from; left untouched.
    rng : numpy.random.RandomState
        Source of the order of the batches, in all processes the same.
    deadline : float
        Value of ``time.monotonic()`` after which it ends.

    Returns
    -------
    S, V : tuple of arrays
        The network reached, balanced: or the first one, if that is better.

    Raises
    ------
    Interrupted
        A KeyboardInterrupt that carries the network reached.
    """
    network = _Network(problem, *balanced(S, V))
    n_steps, order = max(_STEPS, _EPOCHS * network.n_batches), [0]
    longest = _LENGTH * min(1.0, _SHARING * problem.n_outputs / V.shape[0]) ** _POWER
    try:
        for step in range(n_steps):
            if step % network.n_batches == 0:
                order = rng.permutation(network.n_batches).tolist()
            if step % _STRIDE == 0 and problem.rows.past(deadline):
                break
            length = 0.5 * longest * (1 + math.cos(math.pi * step / n_steps))
            network.step(order[step % network.n_batches], length)
    except KeyboardInterrupt:
        raise Interrupted(balanced(*network.weights())) from None
    trained = balanced(*network.weights())
    return min(trained, (S, V), key=lambda weights: problem.objective(*weights))


class _Network:
    """Weights, what Adam remembers of their gradients, and memory for a batch."""

    def __init__(self, problem: Problem, S: Array, V: Array) -> None:
        xp, (rank, n_neurons), n_outputs = namespace(S), S.shape, V.shape[1]
        self.problem, self.shape, self.n_batches = problem, (rank, n_neurons), _n_batches(problem)
        # A batch is every so manyth row, however the rows are spread over processes.
        own = problem.rows.everyone(problem.A.shape[0])
        self.before = sum(own[: problem.rows.rank])
        # The best bias is known at once where the loss is quadratic; elsewhere it moves with the neurons.
        moving = problem.fit_intercept and not problem.loss.quadratic
        bias = problem.output(S, V).bias if moving else zeros((0,), S)
        self.x = concat([xp.reshape(S, (-1,)), xp.reshape(V, (-1,)), bias], axis=0)
        self.n_weights = self.x.shape[0] - bias.shape[0]
        self.sizes = zeros(self.x.shape, S) + 1 / math.sqrt(n_outputs)
        self.sizes[: rank * n_neurons] = 1 / math.sqrt(rank)
        self.mean, self.square = zeros(self.x.shape, S), zeros(self.x.shape, S)
        self.n_steps = 0
        table = -(-problem.A.shape[0] // self.n_batches), n_neurons
        self.hidden, self.moved = zeros(table, S), zeros(table, S)

    def weights(self) -> tuple[Array, Array]:
        xp, split = namespace(self.x), self.shape[0] * self.shape[1]
        S, V = self.x[:split], self.x[split : self.n_weights]
        return xp.reshape(S, self.shape), xp.reshape(V, (self.shape[1], -1))

    def step(self, batch: int, length: float) -> None:
        """Move every weight by about so much of its size."""
        xp, gradient = namespace(self.x), self.gradient(batch)
        self.n_steps += 1
        self.mean += _MEAN * (gradient - self.mean)
        self.square += _SQUARE * (gradient * gradient - self.square)
        unbiased = math.sqrt(1 - (1 - _SQUARE) ** self.n_steps) / (1 - (1 - _MEAN) ** self.n_steps)
        self.x -= (length * unbiased) * self.sizes * self.mean / (xp.sqrt(self.square) + 1e-8)
        if self.n_steps % _STRIDE == 0:
            # Dead neurons decay into subnormal numbers, which are slow.
            for numbers, least in ((self.x, 1e-15), (self.mean, 1e-15), (self.square, 1e-30)):
                numbers[xp.abs(numbers) < least] = 0

    def gradient(self, batch: int) -> Array:
        """Gradient of the objective, with the loss of a batch, times their number, for that of all rows."""
        problem, (S, V) = self.problem, self.weights()
        rows = slice((batch - self.before) % self.n_batches, None, self.n_batches)
        A, loss = problem.A[rows, :], problem.loss.mapped(lambda M: M[rows, :])
        H, moved = self.hidden[: A.shape[0], :], self.moved[: A.shape[0], :]
        in_place.relu(in_place.matmul(A, S, out=H))
        F, direction, bias = H @ V, A[:, -1], self.x[self.n_weights :]
        if bias.shape[0]:
            F += direction[:, None] * bias
        R = loss.dual(F)
        if problem.fit_intercept and problem.loss.quadratic:
            along, square = (problem.rows.total(M) for M in (direction @ R, direction @ direction))
            R = R - direction[:, None] * (along / square)
        # The output weights of one output come last: an outer product with them would take most of the time.
        on = in_place.positive(H, out=moved)
        if V.shape[1] == 1:
            gradient_S = (on.T @ (A * R)).T * V[:, 0]
        else:
            on *= R @ V.T
            gradient_S = (on.T @ A).T
        parts = [gradient_S, (R.T @ H).T, (direction @ R)[: bias.shape[0]]]
        packed = concat([namespace(S).reshape(M, (-1,)) for M in parts], axis=0)
        gradient = -self.n_batches * problem.rows.total(packed)
        gradient[: self.n_weights] += problem.beta * self.x[: self.n_weights]
        return gradient
