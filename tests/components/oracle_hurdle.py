"""Exact values and slopes of a hurdle before a real-valued family, from those of the family."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from oracle_continuous import Exact, tail_slopes
from scipy import special


@dataclasses.dataclass(frozen=True, eq=False)
class HurdleOf:
    """Mass ``z`` at zero and ``1 - z`` by the law of another oracle, positive or not."""

    base: Any
    positive: bool = True
    lattice = None

    def parts(self, parameters):
        inner = {name: v for name, v in parameters.items() if name != "logit"}
        return inner, special.expit(parameters["logit"]), special.expit(-parameters["logit"])

    def inside(self, y):
        """Where the base is asked: instead of zero, just above it."""
        return np.where((y == 0) & self.positive, 1e-200, y)

    def near(self, parameters, y):
        inner, zero = self.parts(parameters)[0], y == 0
        base = self.base.near(inner, y)

        def formula(y, logit, **moved):
            other = base(y=np.where(zero, 1, y), **moved) - np.log1p(np.exp(logit))
            return np.where(zero, -np.log1p(np.exp(-logit)), other)

        return formula

    def quantile(self, parameters, p):
        inner, zero, rest = self.parts(parameters)
        start = rest * self.base.cdf(inner, 0.0)
        within = np.where(p <= start, p / rest, 1 - (1 - p) / rest)
        value = self.base.quantile(inner, np.clip(within, 0, 1))
        return np.where((p > start) & (p <= start + zero), 0, value)

    def cdf(self, parameters, y):
        inner, zero, rest = self.parts(parameters)
        return rest * self.base.cdf(inner, y) + zero * (y >= 0)

    def before(self, y):
        return np.where(y == 0, -1e-300, y)

    def log_prob(self, parameters, y):
        inner, zero, rest = self.parts(parameters)
        other = np.log(rest) + self.base.log_prob(inner, self.inside(y))
        return np.where(y == 0, np.log(zero), other)

    def share(self, parameters):
        """Of the part that has a density."""
        return self.parts(parameters)[2]

    def exact(self, parameters, y):
        inner, zero, rest = self.parts(parameters)
        at_zero, upper, logit = y == 0, y >= 0, np.abs(parameters["logit"])
        own, by_base, own_sizes, slope_sizes, natural = self.base.exact(inner, self.inside(y))
        with np.errstate(all="ignore"):
            log_rest = np.log(rest)
            values = {"log_prob": np.where(at_zero, np.log(zero), log_rest + own["log_prob"])}
            values["cdf"] = rest * own["cdf"] + zero * upper
            values["survival"] = rest * own["survival"] + zero * ~upper
            for side, other, beyond in (("cdf", "survival", ~upper), ("survival", "cdf", upper)):
                log = np.where(beyond, log_rest + own[f"log_{side}"], np.log(values[side]))
                small = values[side] < values[other]
                values[f"log_{side}"] = np.where(small, log, np.log1p(-values[other]))
            mean, variance = own["mean"], own["variance"]
            values |= {"mean": rest * mean, "variance": rest * (variance + zero * mean**2)}
            slopes, sizes = {}, {}
            for name, by in by_base.items():
                flat = at_zero & (name == "y") & self.positive
                slopes[name] = tail_slopes(np.where(flat, 0, rest * by["cdf"]), values)
                slopes[name]["log_prob"] = np.where(at_zero, 0, by["log_prob"])
                if name != "y":
                    slopes[name]["mean"] = rest * by["mean"]
                    bend = by["variance"] + 2 * zero * mean * by["mean"]
                    slopes[name]["variance"] = rest * bend
            in_cdf = zero * rest * np.where(upper, own["survival"], -own["cdf"])
            slopes["logit"] = tail_slopes(in_cdf, values)
            slopes["logit"]["log_prob"] = np.where(at_zero, rest, -zero)
            slopes["logit"]["mean"] = -zero * rest * mean
            slopes["logit"]["variance"] = zero * rest * ((rest - zero) * mean**2 - variance)
            values_own = {n: np.abs(v) + ("log" in n) for n, v in values.items()}
            value_sizes = {
                name: np.where(at_zero, 0, own_sizes[name]) + (1 + logit) * size
                for name, size in values_own.items()
            }
            for name, by in slopes.items():
                own_size = slope_sizes.get(name, {})
                sizes[name] = {
                    output: np.where(at_zero, 0, own_size.get(output, 0))
                    + (2 + logit) * (np.abs(slope) + (1 if "log" in output else values_own[output]))
                    for output, slope in by.items()
                }
        return Exact(values, slopes, value_sizes, sizes, {**natural, "logit": np.ones(y.shape)})
