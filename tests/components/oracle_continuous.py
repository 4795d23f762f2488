"""Exact values and slopes of continuous families, from SciPy's law and one formula of each.

The formula ``log p(y; parameters)`` takes complex numbers: a step of ``1e-200 i`` gives each score
``d log p / d parameter`` to the last digit, and all other slopes are averages of scores:

    d P(Y <= y) / d parameter = E[score(Y) 1(Y <= y)],    d E[g(Y)] = E[g(Y) score(Y)].

``Law`` takes the averages by Gauss and Legendre over the logarithm of a tail's probability, through
SciPy's quantiles; ``Integrated`` over ``y`` itself, in extended precision and with the values as
well, where SciPy's functions have too few digits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

LD = np.longdouble
STEP = 1e-200
TAILS = ("cdf", "survival")
SCIPY = {"log_prob": "logpdf", "cdf": "cdf", "survival": "sf"}
SCIPY |= {"log_cdf": "logcdf", "log_survival": "logsf"}


class Exact(NamedTuple):
    """Values, slopes ``{parameter or "y": {output: slope}}``, and the sizes that errors scale with.

    An error of a last place in an argument moves a value by ``value_sizes`` rounding units.
    """

    values: dict[str, np.ndarray]
    slopes: dict[str, dict[str, np.ndarray]]
    value_sizes: dict[str, np.ndarray]
    slope_sizes: dict[str, dict[str, np.ndarray]]
    natural: dict[str, np.ndarray]  # the inverse of each argument's natural unit


def gauss(edges, order):
    """Nodes and weights on every piece between ``edges [B, ...]``, along the first axis."""
    x, w = (v.astype(edges.dtype) for v in np.polynomial.legendre.leggauss(order))
    x, w = (v.reshape(-1, *(1,) * np.ndim(edges)) for v in (x, w))
    half = (edges[1:] - edges[:-1]) / 2
    nodes, weights = (edges[1:] + edges[:-1]) / 2 + half * x, half * w  # [order, B - 1, ...]
    return (v.reshape(-1, *edges.shape[1:]) for v in (nodes, weights))


def slope(formula, y, parameters, name):
    """The derivative of ``log p`` in a parameter or in ``y``, by a complex step."""
    moved = {**parameters, "y": y}
    moved[name] = moved[name] + STEP * 1j
    return np.imag(formula(**moved)) / STEP


def bend(formula, y, parameters, direction):
    """The second derivative of ``log p`` along a direction, by Cauchy's integral on a circle.

    The formula is analytic well beyond one step of the direction: 32 points take all digits of it.
    """
    turns = np.exp(2j * np.pi * np.arange(32) / 32).reshape(-1, *(1,) * np.ndim(y))
    at = {name: v + turns * direction[name] for name, v in parameters.items()}
    values = formula(y=y + turns * direction["y"], **at)
    return 2 * np.real(np.mean(values * turns**-2, axis=0))


def tail_slopes(in_cdf, values):
    """Slopes of both tails and of their logarithms, from that of the cdf."""
    below, above = (in_cdf / np.where(values[n] > 0, values[n], np.inf) for n in TAILS)
    return {"cdf": in_cdf, "survival": -in_cdf, "log_cdf": below, "log_survival": -above}


def levels(rng, shape, low=1e-6):
    """Probabilities from ``low`` to ``1 - low``, as many near the ends as in the middle."""
    p = 10 ** rng.uniform(np.log10(low), -0.31, shape)
    return np.where(rng.random(shape) < 0.5, p, 1 - p)


@dataclasses.dataclass(frozen=True, eq=False)
class Law:
    """SciPy's frozen distribution and the formula of its log-density.

    ``split`` is the probability below a kink of the density, over which no average runs;
    ``closed_moments`` are mean and variance where an average would not converge.
    """

    law: Callable[..., Any]
    formula: Callable[..., Any]
    split: Callable[..., Any] = lambda **_: 0.5
    closed_moments: Callable[..., Any] | None = None
    lattice = None  # targets are no whole numbers

    def quantile(self, parameters, p):
        return self.law(**parameters).ppf(p)

    def cdf(self, parameters, y):
        return self.law(**parameters).cdf(y)

    def log_prob(self, parameters, y):
        return self.law(**parameters).logpdf(y)

    def near(self, parameters, y):
        """``log p`` for complex numbers near these."""
        return self.formula

    def nodes(self, parameters, y):
        """Targets and their probabilities ``[Q, ...]``, which are below ``y``, and values at ``y``.

        From the tail beyond ``y`` inward to the split, and from the split out into the other tail.
        """
        law = self.law(**parameters)
        values = {name: getattr(law, method)(y) for name, method in SCIPY.items()}
        split = np.broadcast_to(self.split(**parameters), np.shape(y))
        lower = values["cdf"] < split
        side = np.where(lower, split, 1 - split)
        own = np.clip(np.where(lower, values["cdf"], values["survival"]), 1e-300, side)
        ends = [0, 0.3, 0.7, 1.2, 2, 3, 4, 6, 8, 11, 15, 20, 27, 36, 50, 80, 120]
        ends = np.reshape(ends, (-1, *(1,) * np.ndim(y))) + np.zeros(np.shape(y))
        between = np.minimum(ends, np.log(side / own))
        mass, weights = [], []
        for start, edges in ((own, ends), (side, between), (1 - side, ends)):
            s, w = gauss(edges, 16)
            mass.append(start * np.exp(-s))
            weights.append(w * mass[-1])
        near = np.concatenate(mass[:2])
        near = np.where(lower, law.ppf(near), law.isf(near))
        far = np.where(lower, law.isf(mass[2]), law.ppf(mass[2]))
        below = np.repeat(np.stack([lower, ~lower, ~lower]), len(mass[0]), axis=0)
        return np.concatenate([near, far]), np.concatenate(weights), below, values

    def scores(self, t, y, parameters, weights):
        """``{parameter: (scores at the nodes, score at y)}``."""
        return {
            name: tuple(slope(self.formula, at, parameters, name) for at in (t, y))
            for name in parameters
        }

    # The variable of the nodes is the target, unless a subclass has another.

    def variable(self, y):
        return y

    def outcome(self, t):
        return t

    def transform(self, values, slopes, y):
        """From the variable to the target."""

    def deviation(self, parameters, values):
        return np.sqrt(values["variance"])

    def magnitudes(self, parameters, y):
        """What a rounding unit of each argument is a share of."""
        return {**parameters, "y": y}

    def exact(self, parameters, y):
        with np.errstate(all="ignore"):
            x = self.variable(y)
            t, weights, below, values = self.nodes(parameters, x)
            scores = self.scores(t, x, parameters, weights)
            t = self.outcome(t)
            mean = np.sum(weights * t, axis=0)
            square = (t - mean) ** 2
            values |= {"mean": mean, "variance": np.sum(weights * square, axis=0)}
            slopes, natural = {}, {}
            for name, (score, at_y) in scores.items():
                usual = np.isfinite(score) & (np.abs(t) < 1e100)
                mass = weights * np.where(usual, score, 0)
                lower, upper = (np.sum(mass * side, axis=0) for side in (below, ~below))
                in_cdf = np.where(values["cdf"] < values["survival"], lower, -upper)
                slopes[name] = tail_slopes(in_cdf, values) | {"log_prob": at_y}
                slopes[name]["mean"] = np.sum((t - mean) * mass, axis=0)
                slopes[name]["variance"] = np.sum(square * mass, axis=0)
                natural[name] = np.sqrt(
                    np.sum(np.where(usual, score, 0) * mass, axis=0)
                )  # of the information
            slopes["y"] = tail_slopes(np.exp(values["log_prob"]), values)
            slopes["y"]["log_prob"] = slope(self.formula, x, parameters, "y")
            natural["y"] = 1 / self.deviation(parameters, values)
            if self.closed_moments:
                pairs = {None: self.closed_moments(**parameters)} | {
                    x: self.closed_moments(**{**parameters, x: parameters[x] + STEP * 1j})
                    for x in parameters
                }
                for i, output in enumerate(("mean", "variance")):
                    values[output] = pairs[None][i]
                    for x in parameters:
                        slopes[x][output] = np.imag(pairs[x][i] + 0j) / STEP
            self.transform(values, slopes, y)
            sizes = self.sizes(values, slopes, natural, self.magnitudes(parameters, y))
            return Exact(values, slopes, *sizes, natural)

    def sizes(self, values, slopes, natural, arguments):
        """Of a value: itself (its logarithm's for a tail), and what a last place of each argument
        is worth. Of a slope: that of the log-density times itself, and the natural size of the
        slopes in this argument.
        """

        def moved(output):
            parts = [arguments[x] * by[output] for x, by in slopes.items() if output in by]
            return sum(map(np.abs, parts))

        steep = 1 + np.abs(values["log_prob"])
        own = {name: 1 + np.abs(v) if "log" in name else np.abs(v) for name, v in values.items()}
        own |= {name: values[name] * steep for name in TAILS}
        own["mean"] = own["mean"] + 1 / natural["y"]
        steep = steep + moved("log_prob")
        units = {"cdf": values["cdf"], "survival": values["survival"]}
        units |= {"mean": 1 / natural["y"], "variance": values["variance"]}
        slope_sizes = {
            x: {
                o: np.nan_to_num(np.abs(v) * steep + natural[x] * units.get(o, 1), nan=np.inf)
                for o, v in by.items()
            }
            for x, by in slopes.items()
        }
        return {output: own[output] + moved(output) for output in values}, slope_sizes


@dataclasses.dataclass(frozen=True, eq=False)
class Integrated(Law):
    """``exp(formula)``, not normalised, integrated over the pieces between ``cuts``.

    SciPy's law serves where its digits do: for drawing targets, and under mixtures and samples.
    """

    cuts: Callable[..., Any] = None

    def nodes(self, parameters, y):
        cuts = self.cuts(**{name: v.astype(LD) for name, v in parameters.items()})
        edges = np.concatenate([cuts, np.clip(y, cuts.min(0), cuts.max(0))[None]])
        t, weights = gauss(np.sort(edges, axis=0), 20)
        kernel = self.formula(y=t, **parameters)
        peak = np.max(kernel, axis=0)
        weights = weights * np.exp(kernel - peak)
        norm = np.sum(weights, axis=0)
        weights, below = weights / norm, t < y
        values = {"log_prob": self.formula(y=y.astype(LD), **parameters) - peak - np.log(norm)}
        pair = (np.sum(weights * side, axis=0) for side in (below, ~below))
        values |= dict(zip(TAILS, pair, strict=True))
        for name, other in zip(TAILS, TAILS[::-1], strict=True):
            log = np.log(np.maximum(values[name], LD("1e-4900")))
            small = values[name] < 0.5
            values[f"log_{name}"] = np.where(small, log, np.log1p(-values[other]))
        return t, weights, below, values

    def scores(self, t, y, parameters, weights):
        found = {}
        for name, (score, at_y) in super().scores(t, y, parameters, weights).items():
            average = np.sum(weights * score, axis=0)
            found[name] = score - average, at_y - average
        return found

    def near(self, parameters, y):
        t, weights, _, _ = self.nodes(parameters, y)
        with np.errstate(divide="ignore"):
            start = np.log(weights) - self.formula(y=t, **parameters)  # of a node of no weight too
        t, start = (v.astype(float)[:, None] for v in (t, start))

        def formula(y, **moved):
            total = np.sum(np.exp(self.formula(y=t, **moved) + start), axis=0)
            turned = np.unwrap(np.angle(total), axis=0)  # the same branch all around a circle
            return self.formula(y=y, **moved) - np.log(np.abs(total)) - 1j * turned

        return formula


@dataclasses.dataclass(frozen=True, eq=False)
class ByLogit(Integrated):
    """Of a target between bounds: integrated over its logit, whose log-density the formula is.

    Next to a bound that is not zero no number of ``y`` itself has the distance's digits.
    """

    lower: float = 0.0
    upper: float = 1.0

    def variable(self, y):
        return np.log(y - self.lower) - np.log(self.upper - y)

    def outcome(self, t):
        return self.lower + (self.upper - self.lower) / (1 + np.exp(-t))

    def log_slope(self, y):
        """``log d logit / dy``."""
        return np.log(self.upper - self.lower) - np.log(y - self.lower) - np.log(self.upper - y)

    def transform(self, values, slopes, y):
        steep = slope(lambda y: self.log_slope(y), y, {}, "y")
        rise = np.exp(self.log_slope(y))
        values["log_prob"] = values["log_prob"] + self.log_slope(y)
        slopes["y"] = {name: v * rise for name, v in slopes["y"].items()}
        slopes["y"]["log_prob"] += steep

    def magnitudes(self, parameters, y):
        return {**parameters, "y": np.minimum(y - self.lower, self.upper - y)}

    def near(self, parameters, y):
        inner = super().near(parameters, self.variable(y))
        return lambda y, **moved: inner(y=self.variable(y), **moved) + self.log_slope(y)
