"""Score, objective and number of neurons along the weight decay."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skcvxbn.path import RegularizationPath

Floats = NDArray[np.float64]


class PathDisplay:
    """Pictures of a path of networks, below one another, with a common axis of the weight decay.

    Make one with `from_estimator` or `from_path`.

    Parameters
    ----------
    x : ndarray of shape (n_points,)
        Weight decays, or shares of the largest.
    name : str
        What they are.
    objectives : ndarray of shape (n_points,)
        Training objectives.
    n_neurons : ndarray of shape (n_points,)
        Numbers of neurons.
    lower_bounds : ndarray of shape (n_points,), default=None
        Lower bounds of the objectives.
    scores : tuple of two ndarray of shape (n_points,), default=None
        Mean validation scores, and their standard errors.
    chosen : float, default=None
        The point chosen.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The figure drawn on.
    axes_ : ndarray of matplotlib Axes
        One for each picture: the validation score where there is one, the objective, the neurons.

    See Also
    --------
    skcvxbn.convex_bn_path : Trains such a path.
    skcvxbn.ConvexBNRegressorCV : Chooses a point of it.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn import convex_bn_path
    >>> from skcvxbn.diagnostics import PathDisplay
    >>> X = np.linspace(-1, 1, 21)[:, None]
    >>> path = convex_bn_path(X, np.abs(X[:, 0]), betas=5, random_state=0)
    >>> [ax.get_ylabel() for ax in PathDisplay.from_path(path).axes_]
    ['objective', 'neurons']
    """

    def __init__(
        self,
        *,
        x: Floats,
        name: str,
        objectives: Floats,
        n_neurons: NDArray[Any],
        lower_bounds: Floats | None = None,
        scores: tuple[Floats, Floats] | None = None,
        chosen: float | None = None,
    ) -> None:
        self.x, self.name = x, name
        self.objectives, self.n_neurons, self.lower_bounds = objectives, n_neurons, lower_bounds
        self.scores, self.chosen = scores, chosen

    @classmethod
    def from_estimator(cls, estimator: Any, *, axes: Any = None) -> Self:
        """Draw the search of a fitted estimator with cross-validation, at the `n_components` chosen.

        Parameters
        ----------
        estimator : ConvexBNRegressorCV or ConvexBNClassifierCV
            A fitted one.
        axes : array of matplotlib Axes of shape (3,), default=None
            Where to draw; None makes a new figure.

        Returns
        -------
        PathDisplay
            What was drawn. Objectives and numbers of neurons are means over the folds.
        """
        check_is_fitted(estimator, "cv_results_")
        results, n = estimator.cv_results_, len(estimator.beta_ratios_)
        first = estimator.best_index_ - estimator.best_index_ % n
        rows = slice(first, first + n)
        error = results["std_test_score"][rows] / np.sqrt(max(estimator.n_splits_ - 1, 1))
        display = cls(
            x=estimator.beta_ratios_,
            name="beta_ratio",
            objectives=results["mean_objective"][rows],
            n_neurons=results["mean_n_neurons"][rows],
            scores=(results["mean_test_score"][rows], error),
            chosen=estimator.beta_ratio_,
        )
        return display.plot(axes)

    @classmethod
    def from_path(cls, path: RegularizationPath, *, axes: Any = None) -> Self:
        """Draw what `convex_bn_path` returns.

        Parameters
        ----------
        path : RegularizationPath
            The path.
        axes : array of matplotlib Axes of shape (2,), default=None
            Where to draw; None makes a new figure.

        Returns
        -------
        PathDisplay
            What was drawn.
        """
        display = cls(
            x=path.betas,
            name="beta",
            objectives=path.objectives,
            n_neurons=path.n_neurons,
            lower_bounds=path.lower_bounds,
        )
        return display.plot(axes)

    def plot(self, axes: Any = None) -> Self:
        """Draw the pictures.

        Parameters
        ----------
        axes : array of matplotlib Axes, default=None
            Where to draw, one for each picture; None makes a new figure.

        Returns
        -------
        PathDisplay
            Itself, with `figure_` and `axes_`.
        """
        pictures = [self._draw_score, self._draw_objective, self._draw_neurons]
        if self.scores is None:
            del pictures[0]
        if axes is None:
            import matplotlib.pyplot as plt

            size = (6.4, 2.2 * len(pictures))
            axes = plt.subplots(len(pictures), sharex=True, figsize=size, layout="constrained")[1]
        self.axes_ = np.asarray(axes, dtype=object).ravel()
        if len(self.axes_) != len(pictures):
            raise ValueError(f"axes must hold {len(pictures)} Axes. Got {len(self.axes_)} instead.")
        self.figure_ = self.axes_[0].figure
        for draw, ax in zip(pictures, self.axes_, strict=True):
            draw(ax)
            ax.set_xscale("log")
            if self.chosen is not None:
                ax.axvline(self.chosen, color="0.5", ls="--", lw=1, label="chosen")
        self.axes_[-1].set_xlabel(self.name)
        self.axes_[0].legend(frameon=False)
        return self

    def _draw_score(self, ax: Any) -> None:
        assert self.scores is not None
        mean, error = self.scores
        ax.fill_between(self.x, mean - error, mean + error, alpha=0.15, lw=0, label="one standard error")
        ax.plot(self.x, mean, ".-", label="mean over the folds")
        ax.set_ylabel("validation score")

    def _draw_objective(self, ax: Any) -> None:
        if self.lower_bounds is not None:
            ax.fill_between(self.x, self.lower_bounds, self.objectives, alpha=0.3, lw=0, label="gap")
        ax.plot(self.x, self.objectives, ".-", label="training objective")
        ax.set_ylabel("objective")

    def _draw_neurons(self, ax: Any) -> None:
        ax.plot(self.x, self.n_neurons, ".-")
        ax.set_ylabel("neurons")
