"""Arrangements: counts, brute force by linear programs, and the invariances of sampled gates."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import linprog

from skcvxbn.arrangements import (
    count_arrangements,
    enumerate_arrangements,
    given_arrangements,
    sampled_arrangements,
    unique_arrangements,
)


def columns(patterns):
    return {tuple(column) for column in patterns.T}


def brute_force(A):
    """Every sign vector of the nonzero rows that a linear program can realise."""
    zero = ~A.any(axis=1)
    found = set()
    for signs in itertools.product([True, False], repeat=int((~zero).sum())):
        G = np.where(signs, 1.0, -1.0)[:, None] * A[~zero]
        program = linprog(np.zeros(A.shape[1]), A_ub=-G, b_ub=-np.ones(len(G)), bounds=(None, None))
        if program.status == 0:
            on = np.ones(len(A), dtype=bool)
            on[~zero] = signs
            found.add(tuple(on))
    return found


def grid(*values, repeat):
    return np.array(list(itertools.product(values, repeat=repeat)), dtype=float)


GENERAL = [
    (1, 1),
    (1, 3),
    (6, 1),
    (7, 2),
    (4, 4),
    (6, 9),
    (15, 3),
    (25, 3),
    (9, 4),
    (10, 5),
    (9, 6),
    (12, 11),
]


@pytest.mark.parametrize(("n", "q"), GENERAL)
def test_general_position_has_the_known_number_of_arrangements(n, q):
    A = np.random.default_rng(n + q).standard_normal((n, q))
    expected = 2 * sum(math.comb(n - 1, k) for k in range(q))

    patterns = enumerate_arrangements(A)

    assert patterns.shape == (n, expected)
    assert patterns.dtype == bool
    assert len(columns(patterns)) == expected
    assert count_arrangements(n, q) == expected
    # Every pattern that random points show is in the list.
    seen = A @ np.random.default_rng(0).standard_normal((q, 2000)) >= 0
    assert columns(seen) <= columns(patterns)


rng = np.random.default_rng(7)
base = rng.standard_normal((4, 3))
DEGENERATE = {
    "general": rng.standard_normal((7, 3)),
    "duplicate rows": base[[0, 1, 0, 2, 2, 3]],
    "opposite rows": np.vstack([base, -base[:3]]),
    "parallel rows": np.vstack([base, 3 * base[:2], -1e-7 * base[2:3]]),
    "zero rows": np.vstack([base, np.zeros((2, 3))]),
    "rank two in three": rng.standard_normal((7, 2)) @ rng.standard_normal((2, 3)),
    "rank one": rng.standard_normal((5, 1)) @ rng.standard_normal((1, 3)),
    "five planes through one line": np.vstack([np.c_[rng.standard_normal((5, 2)), np.zeros(5)], base[:2]]),
    "integer points": np.c_[grid(-1, 0, 1, repeat=2)[:8], np.ones(8)],
    "two orthogonal planes": np.kron(np.eye(2), rng.standard_normal((4, 2))),
    "all pairs of a cube": grid(-1, 1, repeat=3),
    "rank four": np.vstack([np.eye(4), [[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [1, -1, 0, 0]]]),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_position_agrees_with_linear_programs(name):
    A = DEGENERATE[name]
    assert columns(enumerate_arrangements(A)) == brute_force(A)


@pytest.mark.parametrize("d", [3, 4, 5])
def test_braid_arrangement_has_one_cell_a_permutation(d):
    A = [np.eye(d)[i] - np.eye(d)[j] for i, j in itertools.combinations(range(d), 2)]
    assert enumerate_arrangements(A).shape[1] == math.factorial(d)


@pytest.mark.parametrize("d", [2, 3, 4])
def test_coxeter_arrangement_of_type_b_has_one_cell_a_signed_permutation(d):
    pairs = list(itertools.combinations(range(d), 2))
    eye = np.eye(d)
    A = np.vstack([eye, [eye[i] - eye[j] for i, j in pairs], [eye[i] + eye[j] for i, j in pairs]])
    # The same cells from other coordinates, where no sum is exact and rounding could invent cells.
    rotation = np.linalg.qr(np.random.default_rng(d).standard_normal((d, d)))[0]
    for rows in (A, A @ rotation):
        assert enumerate_arrangements(rows).shape[1] == 2**d * math.factorial(d)


def test_enumeration_follows_the_order_scale_and_basis_of_the_rows():
    rng = np.random.default_rng(3)
    A = np.vstack([rng.standard_normal((8, 3)), np.zeros((1, 3))])
    A[5] = -2 * A[0]
    patterns = enumerate_arrangements(A)

    order = rng.permutation(len(A))
    np.testing.assert_array_equal(enumerate_arrangements(A[order]), unique_arrangements(patterns[order]))
    np.testing.assert_array_equal(enumerate_arrangements(A * rng.uniform(1e-9, 1e9, (9, 1))), patterns)
    np.testing.assert_array_equal(enumerate_arrangements(A @ rng.standard_normal((3, 3))), patterns)


def test_zero_rows_are_on():
    assert enumerate_arrangements(np.zeros((3, 2))).tolist() == [[True]] * 3


@pytest.mark.parametrize(
    ("n", "q", "count"), [(40, 5, "184342"), (60, 60, r"10\^18\.1"), (3000, 900, r"10\^")]
)
def test_too_many_arrangements_are_refused_with_their_number(n, q, count):
    A = np.random.default_rng(0).standard_normal((n, q))
    with pytest.raises(ValueError, match=f"up to {count}.* arrangements, more than max_arrangements=100000"):
        enumerate_arrangements(A)


def test_the_refused_number_counts_distinct_hyperplanes_and_rank():
    A = np.random.default_rng(0).standard_normal((6, 2)) @ np.ones((2, 3)) * [[1, 2, 3]]
    assert enumerate_arrangements(A, max_arrangements=2).shape == (6, 2)
    A = np.repeat(np.random.default_rng(0).standard_normal((5, 2)), 3, axis=0)
    assert enumerate_arrangements(A, max_arrangements=10).shape == (15, 10)
    with pytest.raises(
        ValueError, match="15 rows form 5 distinct hyperplanes of rank 2, which have up to 10 "
    ):
        enumerate_arrangements(A, max_arrangements=9)


@pytest.mark.parametrize("A", [[[1.0, np.nan]], [1.0, 2.0], [[np.inf, 0.0]]])
def test_enumeration_refuses_what_is_not_a_finite_matrix(A):
    with pytest.raises(ValueError, match="2D array without NaN"):
        enumerate_arrangements(A)


@pytest.mark.parametrize("value", [0, -3, 2.5, True, "many"])
def test_counts_must_be_positive_integers(value):
    with pytest.raises(ValueError, match="max_arrangements must be an int in the range"):
        enumerate_arrangements(np.eye(2), max_arrangements=value)
    with pytest.raises(ValueError, match="n_arrangements must be an int in the range"):
        sampled_arrangements(np.eye(2), None, value, np.random.default_rng(0))


def test_unique_arrangements_are_sorted_and_depend_on_the_set_only():
    patterns = np.random.default_rng(0).random((21, 40)) < 0.5
    expected = np.array(sorted(columns(patterns), reverse=True)).T
    np.testing.assert_array_equal(unique_arrangements(patterns), expected)
    np.testing.assert_array_equal(unique_arrangements(np.hstack([patterns[:, ::-1], patterns])), expected)


def data(n=60, d=4):
    rng = np.random.default_rng(11)
    return rng.standard_normal((n, d)) * [1.0, 1e3, 1e-3, 5.0][:d] + [0.0, 1e5, 1.0, -7.0][:d]


def sample(X, weight=None, P=50, seed=0):
    return sampled_arrangements(X, weight, P, np.random.default_rng(seed))


def test_sampled_arrangements_are_distinct_useful_arrangements_of_the_centred_data():
    X = data()
    patterns = sample(X)
    assert patterns.shape == (60, 50)
    assert len(columns(patterns)) == 50
    assert patterns.any(axis=0).all()
    assert patterns.all(axis=0).sum() == 1
    # Each is realised by some s: a linear program over A finds it.
    A = np.c_[(X - X.mean(axis=0)) / X.std(axis=0), np.ones(60)]
    for on in patterns.T[::7]:
        G = np.where(on, 1.0, -1.0)[:, None] * A
        assert linprog(np.zeros(5), A_ub=-G, b_ub=-np.ones(60), bounds=(None, None)).status == 0


def test_sampled_arrangements_follow_rows_repetition_weights_and_units():
    X, rng = data(), np.random.default_rng(2)
    patterns = sample(X)
    order, counts = rng.permutation(60), rng.integers(1, 4, 60)
    weighted = sample(X, counts)

    np.testing.assert_array_equal(sample(X[order]), unique_arrangements(patterns[order]))
    assert columns(weighted) != columns(patterns)
    np.testing.assert_array_equal(
        sample(np.repeat(X, counts, axis=0)), unique_arrangements(np.repeat(weighted, counts, axis=0))
    )
    np.testing.assert_array_equal(sample(X * [1e-12, 1e12, 3.0, 1.0] + [0, 0, 0, 2.0]), patterns)
    np.testing.assert_array_equal(sample(X, np.full(60, 1e-12)), patterns)


def test_samples_are_nested_and_end_where_the_data_have_no_more():
    X = data()
    assert columns(sample(X, P=20)) <= columns(sample(X, P=50))
    assert columns(sample(X, seed=1)) != columns(sample(X))
    few = sample(X[:4, :1], P=1000)
    # Four points on a line: cut anywhere, either side on; all off is left out.
    assert few.shape[1] == 2 * 4 - 1
    assert sample(np.ones((5, 3))).tolist() == [[True]] * 5
    assert sample(data(1)).tolist() == [[True]]


def test_given_arrangements_are_the_signs_of_the_gates():
    X = data()
    gates = np.random.default_rng(4).standard_normal((4, 150)) * [[1.0], [1e-5], [1.0], [1.0]]
    expected = {tuple(bool(x @ g >= 0) for x in X) for g in gates.T}
    assert len(expected) > 10
    assert columns(given_arrangements(X, gates)) == expected


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        (np.ones(4), r"\(n_features, P\) = \(4, P\).*Got an array of shape \(4,\)"),
        (np.ones((3, 2)), r"Got an array of shape \(3, 2\)"),
        (np.ones((4, 0)), r"Got an array of shape \(4, 0\)"),
        (np.full((4, 1), np.nan), "NaN or infinity"),
        (np.full((4, 1), np.inf), "NaN or infinity"),
        (np.full((4, 1), "a"), "must be real numbers"),
        (np.full((4, 1), 1j), "must be real numbers"),
    ],
)
def test_given_arrangements_refuse_what_are_not_gates(gates, message):
    with pytest.raises(ValueError, match=message):
        given_arrangements(data(), gates)
