"""Exact values and slopes of families of counts: sums over tables in extended precision.

A table holds ``P(0), P(1), ...`` of every row and its slopes ``{parameter: [ROWS, LAST + 1]}``. It
comes of a recurrence that multiplies positive numbers: nothing underflows or cancels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from oracle_continuous import Exact, tail_slopes
from scipy import special, stats

LD = np.longdouble
LAST = 2000
LEVELS = {"lower": -1.0, "upper": 2.0, "num_bins": 25}  # of the discretised logistic


def base_table(rate, concentration=np.inf):
    """Of a negative binomial, in the limit a Poisson: an error of 1e-19 a step."""
    m, r = np.broadcast_arrays(np.asarray(rate, LD), np.asarray(concentration, LD))
    r = np.where(np.isinf(r), LD("1e2000"), r)
    j = np.arange(1, LAST + 1, dtype=LD)
    ratios = m / (1 + m / r) * (1 + (j - 1) / r) / j
    table = np.cumprod(np.concatenate([np.exp(-r * np.log1p(m / r)), ratios], axis=1), axis=1)
    j = np.arange(LAST + 1, dtype=LD)
    in_rate = table * (j - m) / m / (1 + m / r)
    x = m / r
    series = sum((-1) ** n * (n - 1) / LD(n) * x**n for n in range(2, 8))
    first = np.where(x < 1e-3, series, np.log1p(x) - x / (1 + x))
    steps = np.concatenate([-first, (m - j[:-1]) / (r + j[:-1]) / (r + m)], axis=1)
    slopes = {"rate": in_rate, "concentration": table * np.cumsum(steps, axis=1)}
    return table, slopes


def share(logit):
    return 1 / (1 + np.exp(-np.asarray(logit, LD))), 1 / (1 + np.exp(np.asarray(logit, LD)))


def no_or_yes(logit):
    yes, no = share(logit)
    return np.concatenate([no, yes], axis=1), {"logit": yes * no * np.array([-1, 1])}


def inflated(base):
    def table(logit, **parameters):
        (extra, rest), (table, slopes) = share(logit), base(**parameters)
        zero = np.arange(table.shape[1]) == 0
        slopes = {name: rest * slope for name, slope in slopes.items()}
        # 1 - P(0) as a sum, for the digits of small ones.
        in_logit = np.where(zero, np.sum(table[:, 1:], axis=1, keepdims=True), -table)
        return extra * zero + rest * table, {**slopes, "logit": extra * rest * in_logit}

    return table


def hurdled(base):
    def table(logit, **parameters):
        (zero, rest), (table, slopes) = share(logit), base(**parameters)
        total = np.sum(table[:, 1:], axis=1, keepdims=True)
        inner = table[:, 1:] / total
        slopes = {
            name: np.pad(rest * (v[:, 1:] + inner * v[:, :1]) / total, ((0, 0), (1, 0)))
            for name, v in slopes.items()
        }
        in_logit = zero * rest * np.concatenate([np.ones_like(total), -inner], axis=1)
        return np.concatenate([zero, rest * inner], axis=1), {**slopes, "logit": in_logit}

    return table


def discretized(loc, scale):
    loc, scale = np.asarray(loc, LD), np.asarray(scale, LD)
    z = (-1 + LD(3) / 24 * (np.arange(24, dtype=LD) + LD(0.5)) - loc) / scale
    # F(b) - F(a) = sinh((b - a) / 2) / (2 cosh(a / 2) cosh(b / 2))
    a, b = z[:, :-1], z[:, 1:]
    inner = np.sinh((b - a) / 2) / (2 * np.cosh(a / 2) * np.cosh(b / 2))
    first, last = 1 / (1 + np.exp(-z[:, :1])), 1 / (1 + np.exp(z[:, -1:]))
    # log of the above: d/da = -(coth((b - a) / 2) + tanh(a / 2)) / 2, and so on.
    coth = 1 / np.tanh((b - a) / 2)
    in_a, in_b = -inner * (coth + np.tanh(a / 2)) / 2, inner * (coth - np.tanh(b / 2)) / 2
    ends = first * (1 - first), -last * (1 - last)
    in_loc = np.concatenate([-ends[0], inner * (np.tanh(a / 2) + np.tanh(b / 2)) / 2, -ends[1]], 1)
    in_scale = [-ends[0] * z[:, :1], -(in_a * a + in_b * b), -ends[1] * z[:, -1:]]
    table = np.concatenate([first, inner, last], axis=1)
    return table, {"loc": in_loc / scale, "scale": np.concatenate(in_scale, axis=1) / scale}


# Laws in float64, of any shape: the cdf.


def negative_binomial(rate, concentration):
    r = np.minimum(concentration, 1e9)
    return stats.nbinom(r, 1 / (1 + rate / r))


class ZeroLaw:
    """A SciPy law of counts with a share of further zeros, or truncated behind a hurdle."""

    def __init__(self, base, logit, hurdle):
        self.base, self.extra, self.hurdle = base, special.expit(logit), hurdle
        self.first = base.cdf(0) * hurdle

    def cdf(self, y):
        inner = (self.base.cdf(y) - self.first) / (1 - self.first)
        return (y >= 0) * (self.extra + (1 - self.extra) * inner)


class RoundedLogistic:
    def __init__(self, loc, scale):
        self.loc, self.scale = loc, scale

    def cdf(self, y):
        y = -1 + np.floor((y + 1) * 8 + 1e-6) / 8
        return np.where(
            y > 1.99, 1, (y > -1.01) * special.expit((y + 1 / 16 - self.loc) / self.scale)
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Counts:
    """``table`` of one row's parameters ``[ROWS, 1]``, and a ``law`` in float64 of any shape.

    ``formula`` is the log-mass of complex parameters, for second derivatives.
    """

    table: Callable[..., Any]
    law: Callable[..., Any]
    formula: Callable[..., Any]
    lattice: tuple[float, float] = (0.0, 1.0)
    truncated: bool = False  # a hurdle's: what is left of two numbers

    def cdf(self, parameters, y):
        return self.law(**parameters).cdf(y)

    def log_prob(self, parameters, y):
        return self.formula(y, **parameters)

    def before(self, y):
        return y - self.lattice[1]

    def near(self, parameters, y):
        return self.formula

    def levels(self, table):
        return self.lattice[0] + self.lattice[1] * np.arange(table.shape[1], dtype=LD)

    def quantile(self, parameters, p):
        shape = np.broadcast_shapes(np.shape(p), *(np.shape(v) for v in parameters.values()))
        flat = {name: np.broadcast_to(v, shape).reshape(-1, 1) for name, v in parameters.items()}
        table, p = self.table(**flat)[0], np.broadcast_to(p, shape).reshape(-1, 1).astype(LD)
        above = np.cumsum(table[:, ::-1], axis=1)[:, ::-1] - table
        reached = np.where(p < 0.5, np.cumsum(table, axis=1) >= p, above <= 1 - p)
        return self.levels(table)[np.argmax(reached, axis=1)].reshape(shape).astype(float)

    def exact(self, parameters, y):
        table, table_slopes = self.table(**parameters)
        value = self.levels(table)
        at = np.abs(value - y.astype(LD)) < self.lattice[1] / 16
        upper = value > y.astype(LD) + self.lattice[1] / 16

        def parts(table):
            return [
                np.sum(np.where(w, table, 0), axis=1, keepdims=True) for w in (at, ~upper, upper)
            ]

        def expect(weights, table):
            return np.sum(table * weights, axis=1, keepdims=True)

        mass, below, above = parts(table)
        mean = expect(value, table)
        square = (value - mean) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            values = {"log_prob": np.log(mass), "cdf": below, "survival": above}
            values["log_cdf"] = np.where(below < 0.5, np.log(below), np.log1p(-above))
            values["log_survival"] = np.where(above < 0.5, np.log(above), np.log1p(-below))
            values |= {"mean": mean, "variance": expect(square, table)}
            slopes = {}
            for name in parameters:
                in_mass, in_below, in_above = parts(table_slopes[name])
                in_below = np.where(below < above, in_below, -in_above)  # the smaller sum's digits
                slopes[name] = tail_slopes(in_below, values)
                slopes[name]["log_prob"] = in_mass / np.where(mass > 0, mass, np.inf)
                slopes[name]["mean"] = expect(value - mean, table_slopes[name])
                slopes[name]["variance"] = expect(square, table_slopes[name])
            natural = {
                name: np.sqrt(expect(v, v / np.where(table > 0, table, np.inf)))
                for name, v in table_slopes.items()
            }
        slopes["y"] = {name: np.zeros(mass.shape) for name in values if name[0] not in "mv"}
        natural["y"] = np.full(mass.shape, np.inf)  # a mass has no slope in y
        return Exact(values, slopes, *self.sizes(parameters, values, slopes, y), natural)

    def sizes(self, parameters, values, slopes, y):
        """A log-mass and logarithms: themselves or one; tails their logarithm times as much."""
        steep = 1 + np.abs(values["log_prob"])
        size = {n: 1 + np.abs(v) if "log" in n else np.abs(v) * steep for n, v in values.items()}
        if self.truncated:  # what is left of squares of the mean
            size["variance"] = values["variance"] * steep + values["mean"] ** 2
        found = {}
        for parameter, by_output in slopes.items():
            factor = steep
            if parameter == "logit":  # shares are exponentials of logarithms as large as it
                factor = factor + np.abs(parameters["logit"])
            found[parameter] = {}
            for name, slope in by_output.items():
                moment = name in ("mean", "variance")
                terms = self.cancelling(parameter, name, parameters, values, y)
                own = 0.1 / np.minimum(1, parameters.get("scale", 1))  # the oracle's rounding
                found[parameter][name] = (
                    np.abs(slope) * (1 if moment else factor) + terms + own / 20
                )
        return size, found

    def cancelling(self, parameter, name, parameters, values, y):
        """The size of the numbers whose difference a slope is, where it is small beside them."""
        if parameter == "y":
            return 0
        if name in ("mean", "variance"):
            power = 1 if name == "mean" else 2
            # Both sides of a symmetric distribution; a hurdle's truncated moments.
            each = np.sqrt(values["variance"]) ** power / np.minimum(1, parameters.get("scale", 1))
            part = {"rate": 1 / parameters.get("rate", 1), "concentration": 1}.get(parameter, 1)
            each = each + self.truncated * part * (1 + np.abs(values["mean"])) ** power
            return each + (parameter == "concentration")
        scale = {n: values[n] for n in ("cdf", "survival")}.get(name, 1)
        if parameter == "concentration":
            # sum_{i < y} 1 / (r + i) less most of it, y / (r + m).
            r = parameters["concentration"].astype(LD)
            return scale * y / r / (r + y)
        # A positive count is certain to be one for a small rate: y / m less 1 / m.
        hurdle = self.truncated and parameter == "rate"
        return scale * (1 + y) / parameters["rate"] if hurdle else 0
