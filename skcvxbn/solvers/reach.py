"""What is within reach of each way to solve for neurons, and what is worth its time."""

from __future__ import annotations

from skcvxbn.solvers.base import Options, Problem
from skcvxbn.solvers.descent import step_work
from skcvxbn.solvers.interior_point import work_per_step
from skcvxbn.solvers.stochastic import has_batches

# Multiplications of an interior point step: cheap enough to begin with, and dear enough never to be taken.
_CHEAP, _AFFORDABLE = 2e9, 1.2e10
# With more neurons than this descent goes first, cheap or not: few would be left by the first turn. Where
# rows are many it has come from batches, and is that much the better.
_FEW, _FEW_MANY_ROWS = 64, 32
# A round of descent that gains less than the first gives way where what follows converges quickly, or where
# the gap is as small as descent can make it.
GIVE_WAY, _REACH = 1e-3, 1e-4
# Numbers of the table of rows up to which a search is cheap next to a round for several outputs.
_SMALL = 3e4
# Where the program is out of reach, rounds that gain less, for each multiplication of a step of theirs and at
# most, make the end.
_GIVE_UP_PER_WORK, GIVE_UP = 2e-12, 2e-3
# With several outputs, or a loose tolerance, and dear steps a gap above the first is out of reach once a
# round gains less than the second, and than so many times the tolerance, or than a share of it.
_FAR, _FAR_GIVE_UP, _FAR_TIMES, _FAR_SHARE, _FAR_WORK = 1e-2, 2e-3, 2, 0.6, 5e8


class Reach:
    """Limits of the ways to solve for neurons on a problem.

    Parameters
    ----------
    problem : Problem
        The training problem.
    options : Options
        Tolerance and limits.

    Attributes
    ----------
    several, many_rows, smooth : bool
        Whether neurons have several outputs, rows make batches, and the loss is without kinks.
    """

    def __init__(self, problem: Problem, options: Options) -> None:
        self._problem, self._options = problem, options
        self.several = problem.n_outputs > 1
        self.many_rows = has_batches(problem)
        self.smooth = problem.loss.box is None

    def work(self, n_neurons: int) -> float:
        """Return the work of an interior point step for so many neurons."""
        return work_per_step(self._problem, n_neurons)

    def is_cheap(self, n_neurons: int) -> bool:
        """Whether the convex program of so many neurons can take turns with descent from the start."""
        few = 0 < n_neurons <= (_FEW_MANY_ROWS if self.many_rows else _FEW)
        return few and not self.several and self.work(n_neurons) <= _CHEAP

    def affordable(self, n_neurons: int) -> bool:
        """Whether a step of the program may be taken at all."""
        return self.work(n_neurons) <= _AFFORDABLE

    def worthwhile(self, n_neurons: int) -> bool:
        """Whether what follows descent is worth its time."""
        if not self.many_rows:
            return self.affordable(n_neurons)
        # A round takes as long as dozens of descent, or hundreds where the loss has kinks: it is for what
        # these cannot reach.
        tight = self._options.tol < _FAR and not self.several
        return self.work(n_neurons) <= (_AFFORDABLE if tight else _CHEAP if self.smooth else _FAR_WORK)

    def weighs(self, n_neurons: int) -> bool:
        """Whether rounds are to solve for output weights alone, which kinks of the loss would make jump."""
        return self.smooth and self._options.max_neurons is None and not self.is_cheap(n_neurons)

    def converges(self, n_neurons: int, gap: float) -> bool:
        """Whether rounds of what follows descent are cheap, and few of them make the end."""
        n_samples, rank = self._problem.shape
        weighs = self.weighs(n_neurons)
        cheap = not self.several or (weighs and n_samples * rank <= _SMALL)
        return (cheap and not self.many_rows) or (weighs and gap <= _REACH)

    def least_gain(self, n_neurons: int) -> float:
        """Share of the objective that a round of descent has to gain where nothing else is within reach."""
        return min(_GIVE_UP_PER_WORK * step_work(self._problem, n_neurons), GIVE_UP)

    def is_far(self, n_neurons: int, gap: float, progress: float) -> bool:
        """Whether descent that gains so much has no hope of closing such a gap."""
        tol = self._options.tol
        far = (self.several or tol >= _FAR) and self.work(n_neurons) > _FAR_WORK and gap > _FAR
        return far and progress < max(min(_FAR_GIVE_UP, _FAR_TIMES * tol), _FAR_SHARE * tol)
