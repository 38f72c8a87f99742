"""How wrong is the estimated lower bound, and how large may data be for the exact one?

Both tables are about curved targets with noise on Gaussian rows. The truth comes from the branch and bound
of ``skcvxbn.certificates``, which is checked against enumerated arrangements by the tests.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from time import process_time

import numpy as np
from threadpoolctl import threadpool_limits

from skcvxbn.certificates import bound_violation, prove
from skcvxbn.losses import LinearQuadratic
from skcvxbn.solvers import Options, Problem, solve
from skcvxbn.training import largest_beta
from skcvxbn.whitening import whiten


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", choices=["estimated", "exact"], default="estimated")
    parser.add_argument("--rows", type=int, nargs="+", default=[20, 40])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--seeds", type=int, default=5, help="number of problems of each size, from seed 0")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.05, 0.01], help="values of beta_ratio")
    parser.add_argument("--starts", type=int, nargs="+", default=[16, 32, 64, 128, 256, 512])
    parser.add_argument("--tol", type=float, default=1e-4)
    parser.add_argument("--max-time", type=float, default=60.0, help="seconds for a proof")
    parser.add_argument("--threads", type=int, default=1, help="BLAS threads")
    args = parser.parse_args()
    with threadpool_limits(args.threads):
        if args.table == "estimated":
            measure_estimates(args)
        else:
            measure_proofs(args)


def make_problem(n: int, rank: int, seed: int, beta_ratio: float) -> Problem:
    """Return rows in general position with a curved target of unit variance, and an intercept."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, rank))
    y = np.sin(2 * X[:, 0]) + X[:, -1] ** 2 + 0.3 * rng.standard_normal(n)
    problem = Problem(whiten(X).A, LinearQuadratic((y / y.std())[:, None], 1.0), 1.0, True)
    return replace(problem, beta=beta_ratio * largest_beta(problem.A, problem.zero.R))


def make_options(tol: float, starts: int, seed: int = 0) -> Options:
    return Options(
        tol=tol, max_iter=20, max_neurons=None, search_starts=starts, rng=np.random.RandomState(seed)
    )


def measure_estimates(args: argparse.Namespace) -> None:
    """Print how often, and by how much, the bound of a fit exceeds what is true."""
    problems = [
        make_problem(n, rank, seed, ratio)
        for n in args.rows
        for rank in args.ranks
        for seed in range(args.seeds)
        for ratio in args.ratios
    ]
    proved = [
        prove(p, solve(p, make_options(1e-5, 512)), make_options(1e-5, 512), max_time=60) for p in problems
    ]
    worst = max(1 - solution.lower_bound / solution.objective for solution in proved)
    print(
        f"{len(problems)} problems, rows {args.rows}, ranks {args.ranks}; "
        f"optima proved to {worst:.1e} or better\n"
    )
    print(
        "| search_starts | fits that converge | missed a violation | its median | its largest "
        "| bound not supported | by at most | bound refuted | by at most | seconds a fit |"
    )
    print("| --- " * 10 + "|")
    for starts in args.starts:
        begin = process_time()
        fits = [solve(problem, make_options(args.tol, starts)) for problem in problems]
        seconds = (process_time() - begin) / len(fits)
        rows = np.array([_errors(p, fit, best) for p, fit, best in zip(problems, fits, proved, strict=True)])
        missed, unsupported, refuted = rows.T
        share = (missed > 2 * args.tol).mean()
        print(
            f"| {starts} | {np.mean([fit.converged for fit in fits]):.0%} | {share:.0%} "
            f"| {np.median(missed[missed > 2 * args.tol]) if share else 0:.1e} | {missed.max():.1e} "
            f"| {(unsupported > 0).mean():.0%} | {max(unsupported.max(), 0):.1e} "
            f"| {(refuted > 0).mean():.0%} | {max(refuted.max(), 0):.1e} | {seconds:.2f} |",
            flush=True,
        )


def _errors(problem: Problem, fit, best) -> tuple[float, float, float]:
    """Relative errors: of the violation left at the fit's dual point, and of its bound, in two senses."""
    proof = bound_violation(problem.A, fit.R, S=fit.S, target=problem.beta, tol=1e-6, max_time=60)
    unsupported = (fit.lower_bound - problem.dual_bound(fit.R, proof.upper)) / fit.objective - 1e-6
    return (
        proof.value / problem.beta - 1,
        unsupported,
        (fit.lower_bound - best.objective) / best.objective,
    )


def measure_proofs(args: argparse.Namespace) -> None:
    """Print for which sizes, and in what time, a proof closes."""
    print(
        f"| rows | rank | closed to {args.tol:g} | in 10 s | seconds, median | seconds, most | gap, worst |"
    )
    print("| --- " * 7 + "|")
    for n in args.rows:
        for rank in args.ranks:
            seconds, gaps = [], []
            for seed in range(args.seeds):
                for ratio in args.ratios:
                    problem = make_problem(n, rank, seed, ratio)
                    options = make_options(args.tol, 128)
                    fit = solve(problem, options)
                    begin = process_time()
                    proved = prove(problem, fit, options, max_time=args.max_time)
                    seconds.append(process_time() - begin)
                    gaps.append(1 - proved.lower_bound / proved.objective)
            closed = np.array(gaps) <= args.tol
            print(
                f"| {n} | {rank} | {closed.sum()} of {len(gaps)} "
                f"| {(closed & (np.array(seconds) <= 10)).sum()} "
                f"| {np.median(seconds):.1f} | {max(seconds):.1f} | {max(gaps):.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
