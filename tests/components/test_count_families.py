"""Families of counts, and those with extra zeros: against sums in extended precision and mpmath."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from family_checks import compare, mixing, rearranged
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

import jaxmdn
from jaxmdn.components import (
    Bernoulli,
    DiscretizedLogistic,
    Gamma,
    Hurdle,
    LogNormal,
    NegativeBinomial,
    Poisson,
    ZeroInflated,
)

LD = np.longdouble
N, LAST = 64, 2000  # cases at once; the last count of an oracle's table of probabilities
DTYPES = pytest.mark.parametrize("dtype", [np.float64, np.float32])


def base_table(rate, concentration=np.inf):
    """``P(0), ..., P(LAST)`` and their derivatives, by the recurrence in the count.

    It multiplies positive numbers: an error of 1e-19 a step, and nothing underflows.
    """
    m, r = np.broadcast_arrays(np.asarray(rate, LD), np.asarray(concentration, LD))
    m, r = m[:, None], np.where(np.isinf(r), LD("1e2000"), r)[:, None]
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


def inflated(rate, concentration, logit):
    extra, rest = (v[:, None] for v in share(logit))
    table, slopes = base_table(rate, concentration)
    zero = np.arange(LAST + 1) == 0
    slopes = {name: rest * slope for name, slope in slopes.items()}
    # 1 - P(0) as a sum, for the digits of small ones.
    in_logit = np.where(zero, np.sum(table[:, 1:], axis=1, keepdims=True), -table)
    return extra * zero + rest * table, {**slopes, "logit": extra * rest * in_logit}


def hurdled(rate, concentration, logit):
    zero, rest = (v[:, None] for v in share(logit))
    table, slopes = base_table(rate, concentration)
    total = np.sum(table[:, 1:], axis=1, keepdims=True)
    inner = table[:, 1:] / total
    slopes = {
        name: np.pad(rest * (v[:, 1:] + inner * v[:, :1]) / total, ((0, 0), (1, 0)))
        for name, v in slopes.items()
    }
    in_logit = zero * rest * np.concatenate([np.ones_like(total), -inner], axis=1)
    return np.concatenate([zero, rest * inner], axis=1), {**slopes, "logit": in_logit}


def no_or_yes(logit):
    yes, no = share(logit)
    return np.stack([no, yes], axis=1), {"logit": (yes * no)[:, None] * np.array([-1, 1])}


LEVELS = {"lower": -1.0, "upper": 2.0, "num_bins": 25}


def discretized(loc, scale):
    loc, scale = np.asarray(loc, LD)[:, None], np.asarray(scale, LD)[:, None]
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
    in_scale = np.concatenate(
        [-ends[0] * z[:, :1], -(in_a * a + in_b * b), -ends[1] * z[:, -1:]], axis=1
    )
    table = np.concatenate([first, inner, last], axis=1)
    return table, {"loc": in_loc / scale, "scale": in_scale / scale}


@dataclasses.dataclass(frozen=True)
class Case:
    """A family, how to draw its parameters, and the table of its probabilities and their slopes."""

    name: str
    make: Callable[..., Any]
    draw: Callable[[np.random.Generator, int], dict[str, np.ndarray]]
    table: Callable[..., tuple[np.ndarray, dict[str, np.ndarray]]]
    lattice: tuple[float, float] = (0.0, 1.0)
    outside: tuple[float, ...] = (-1.0, 0.5, -np.inf, np.inf, 500.5)

    def parameters(self, seed, count=N, dtype=np.float64):
        drawn = self.draw(np.random.default_rng(seed), count)
        return {name: value.astype(dtype) for name, value in drawn.items()}

    def levels(self, table):
        lower, step = self.lattice
        return lower + step * np.arange(table.shape[1], dtype=LD)

    def exact(self, parameters, y):
        """Values, and slopes of the same names in every parameter."""
        table, slopes = self.table(**parameters)
        value = self.levels(table)
        at = np.abs(value - np.asarray(y, LD)[:, None]) < self.lattice[1] / 16
        upper = value > np.asarray(y, LD)[:, None] + self.lattice[1] / 16

        def outputs(table):
            return [np.sum(np.where(where, table, 0), axis=1) for where in (at, ~upper, upper)]

        mass, below, above = outputs(table)
        mean = np.sum(table * value, axis=1)
        square = (value - mean[:, None]) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            values = {
                "log_density": np.log(mass),
                "cdf": below,
                "survival": above,
                "log_cdf": np.where(below < 0.5, np.log(below), np.log1p(-above)),
                "log_survival": np.where(above < 0.5, np.log(above), np.log1p(-below)),
                "mean": mean,
                "variance": np.sum(table * square, axis=1),
            }
        found = {}
        for name in parameters:
            slope = slopes[name]
            in_mass, in_below, in_above = outputs(slope)
            in_below = np.where(below < above, in_below, -in_above)  # the smaller sum's digits
            found[name] = {
                "log_density": in_mass / np.where(mass > 0, mass, np.inf),
                "cdf": in_below,
                "survival": -in_below,
                "log_cdf": in_below / np.where(below > 0, below, np.inf),
                "log_survival": -in_below / np.where(above > 0, above, np.inf),
                "mean": np.sum(slope * (value - mean[:, None]), axis=1),
                "variance": np.sum(slope * square, axis=1),
            }
        return values, found

    def quantile(self, parameters, p):
        table, _ = self.table(**parameters)
        p = np.asarray(p, LD)[:, None]
        above = np.cumsum(table[:, ::-1], axis=1)[:, ::-1] - table
        reached = np.where(p < 0.5, np.cumsum(table, axis=1) >= p, above <= 1 - p)
        return self.levels(table)[np.argmax(reached, axis=1)]

    def targets(self, seed, parameters, dtype):
        """Quantiles of levels from 1e-9 on, at either end; often the lowest value."""
        rng = np.random.default_rng(seed)
        count = len(next(iter(parameters.values())))
        p = 10 ** rng.uniform(-9, -0.3, count)
        p = np.where(rng.random(count) < 0.5, p, 1 - p)
        p = np.where(rng.random(count) < 0.25, 1e-30, p)
        return self.quantile(parameters, p).astype(dtype)


def log_uniform(low, high):
    return lambda rng, count: np.exp(rng.uniform(np.log(low), np.log(high), count))


def rates(rng, count):
    return {"rate": log_uniform(1e-3, 20)(rng, count)}


def rates_and_concentrations(rng, count):
    return {**rates(rng, count), "concentration": log_uniform(0.5, 1e5)(rng, count)}


def with_logits(rng, count):
    logit = np.where(rng.random(count) < 0.3, rng.choice([-40, 40], count), rng.normal(size=count))
    return {**rates_and_concentrations(rng, count), "logit": logit}


def over_counts(kind):
    def make(rate, concentration, logit):
        return kind(base=NegativeBinomial(rate=rate, concentration=concentration), logit=logit)

    return make


CASES = [
    Case("poisson", Poisson, rates, base_table),
    Case("negative-binomial", NegativeBinomial, rates_and_concentrations, base_table),
    Case(
        "bernoulli",
        Bernoulli,
        lambda rng, count: {
            "logit": np.where(rng.random(count) < 0.5, 1, 12) * rng.normal(size=count)
        },
        no_or_yes,
        outside=(-1.0, 0.5, 2.0, np.inf, -np.inf),
    ),
    Case(
        "discretized-logistic",
        partial(DiscretizedLogistic, **LEVELS),
        lambda rng, count: {
            "loc": rng.uniform(-2, 3, count),
            "scale": log_uniform(1e-2, 3)(rng, count),
        },
        discretized,
        lattice=(-1.0, 0.125),
        outside=(-1.125, 0.1, 2.125, np.inf, -np.inf),
    ),
    Case("zero-inflated", over_counts(ZeroInflated), with_logits, inflated),
    Case("hurdle", over_counts(Hurdle), with_logits, hurdled),
]
BY_NAME = {case.name: case for case in CASES}


def pairs(left_out=()):
    """Every case in both dtypes, some in float64 alone."""
    chosen = [
        pytest.param(case, dtype, id=f"{case.name}-{dtype.__name__}")
        for case, dtype in itertools.product(CASES, (np.float64, np.float32))
        if dtype == np.float64 or case.name not in left_out
    ]
    return pytest.mark.parametrize(("case", "dtype"), chosen)


every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
TAILS = ("cdf", "survival", "log_cdf", "log_survival")


@partial(jax.jit, static_argnums=0)
def run(make, parameters, y):
    """All there is of a family, in one compilation: values, slopes forward and backward."""

    def outputs(parameters):
        family = make(**{name: value[:, None] for name, value in parameters.items()})
        found = {name: getattr(family, name)(y[:, None]) for name in ("log_density", *TAILS)}
        found |= {"mean": family.mean(), "variance": family.variance()}
        return {name: value[:, 0] for name, value in found.items()}

    def finite_sum(parameters):
        values = outputs(parameters)
        both = (values[name] for name in ("log_density", "log_survival"))
        return sum(jnp.sum(jnp.where(jnp.isfinite(value), value, 0)) for value in both)

    directions = {
        name: jnp.stack([jnp.full_like(parameters[name], name == other) for other in parameters])
        for name in parameters
    }
    values, slopes = jax.vmap(
        lambda direction: jax.jvp(outputs, (parameters,), (direction,)), out_axes=(None, 0)
    )(directions)
    slopes = {n: {key: v[i] for key, v in slopes.items()} for i, n in enumerate(parameters)}
    backward = y.dtype == jnp.float64  # the same rules in float32
    return values, slopes, jax.grad(finite_sum)(parameters) if backward else {}


@partial(jax.jit, static_argnums=0)
def quantiles(make, parameters, p):
    return make(**{name: value[:, None] for name, value in parameters.items()}).quantile(p)


def run_at(case, parameters, y):
    arrays = {name: jnp.asarray(value) for name, value in parameters.items()}
    return jax.tree.map(np.asarray, run(case.make, arrays, jnp.asarray(y)))


# In rounding units: log-masses and logarithms of tails to 6 and 20 of themselves or of one, tails
# to 20 of their logarithm (a tail is the exponential of a number that was rounded), slopes to 20,
# those of tails to 40.
UNITS = {"log_density": 6, "variance": 40}


def cancelling(case, parameter, name, parameters, exact, y):
    """The size of the numbers whose difference a slope is, where it is small beside them."""
    hurdle = case.name == "hurdle"
    if name in ("mean", "variance"):
        power = 1 if name == "mean" else 2
        # Both sides of a symmetric distribution; a hurdle's truncated moments.
        each = np.sqrt(exact["variance"]) ** power / np.minimum(1, parameters.get("scale", 1))
        part = {"rate": 1 / parameters.get("rate", 1), "concentration": 1}.get(parameter, 1)
        each = each + hurdle * part * (1 + np.abs(exact["mean"])) ** power
        return each + (parameter == "concentration")
    scale = {"cdf": exact["cdf"], "survival": exact["survival"]}.get(name, 1)
    if parameter == "concentration":
        # sum_{i < y} 1 / (r + i) less most of it, y / (r + m).
        r = parameters["concentration"].astype(LD)
        return scale * y / r / (r + y)
    # A positive count is certain to be one for a small rate: y / m less 1 / m.
    return scale * (1 + y) / parameters["rate"] if hurdle and parameter == "rate" else np.zeros(N)


@pairs(left_out=("poisson",))
def test_values_and_slopes(case, dtype):
    eps = float(np.finfo(dtype).eps)
    parameters = case.parameters(1, dtype=dtype)
    y = case.targets(2, parameters, dtype)
    found, slopes, reverse = run_at(case, parameters, y)
    exact, exact_slopes = case.exact(parameters, y)
    log_mass = 1 + np.abs(exact["log_density"])
    # A hurdle's lower tail is that of the counts less the mass at zero.
    units = 60 if case.name == "hurdle" else 20
    for name, value in exact.items():
        assert found[name].dtype == dtype
        size = 1 + np.abs(value) if "log" in name else np.abs(value) * log_mass
        if name == "variance":  # of what is left of a hurdle: of squares of the mean
            size = size + exact["mean"] ** 2 * ("hurdle" in case.name)
            size = size + np.finfo(dtype).tiny / eps  # what is below is flushed to zero
        compare(found[name], value, UNITS.get(name, units) * eps * size, name)
    for parameter, by_output in exact_slopes.items():
        for name, value in by_output.items():
            terms = cancelling(case, parameter, name, parameters, exact, y)
            factor = 1 if name in ("mean", "variance") else log_mass
            if parameter == "logit":  # shares are exponentials of logarithms as large as it
                factor = factor + np.abs(parameters["logit"])
            own = 1e-17 / np.minimum(1, parameters.get("scale", 1))  # the oracle's rounding
            room = (2 if name in TAILS else 1) * units * eps  # a slope of an integral is another
            size = room * (np.abs(value) * factor + terms) + own
            compare(slopes[parameter][name], value, size, f"{name} in {parameter}")
        if not reverse:
            continue
        total = slopes[parameter]["log_density"] + slopes[parameter]["log_survival"]
        total = np.where(
            np.isfinite(found["log_survival"]), total, slopes[parameter]["log_density"]
        )
        np.testing.assert_allclose(reverse[parameter], total, rtol=50 * eps, atol=50 * eps)


@every_case
def test_sums_to_one(case):
    lower, step = case.lattice
    for index in range(3):
        one = {name: np.repeat(v[index], N) for name, v in case.parameters(20).items()}
        one |= {"rate": np.full(N, 1.0 + index)} if "rate" in one else {}
        one |= {"concentration": np.full(N, 10.0**index)} if "concentration" in one else {}
        log_mass = run_at(case, one, lower + step * np.arange(N))[0]["log_density"]
        # Of 64 counts at concentration one and rate one 2^-64 is left.
        np.testing.assert_allclose(np.sum(np.exp(log_mass)), 1, rtol=1e-14)


@every_case
def test_outside_the_support(case):
    y = np.resize([*case.outside, np.nan], N)
    parameters = case.parameters(3)
    found, slopes, reverse = run_at(case, parameters, y)
    nan = np.isnan(y)
    np.testing.assert_array_equal(found["log_density"][~nan], -np.inf)
    exact = case.exact(parameters, y)[0]
    for name in TAILS:
        np.testing.assert_array_equal(np.isnan(found[name]), nan)
        np.testing.assert_allclose(
            found[name][~nan], exact[name][~nan].astype(float), rtol=1e-12, atol=1e-13
        )
    for parameter in parameters:
        np.testing.assert_array_equal(slopes[parameter]["log_density"][~nan], 0)
        assert np.all(np.isfinite(reverse[parameter]))
    assert np.all(np.isnan(found["log_density"][nan]))
    inside = case.make(**{k: jnp.asarray(v)[:, None] for k, v in parameters.items()}).in_support(
        jnp.asarray(y)[:, None]
    )
    assert not bool(jnp.any(inside))


@pairs(left_out=("poisson", "zero-inflated", "hurdle"))
def test_quantiles(case, dtype):
    parameters = case.parameters(4, dtype=dtype)
    arrays = {name: jnp.asarray(value) for name, value in parameters.items()}
    rng = np.random.default_rng(5)
    least = -6 if dtype == np.float64 else -3  # of 1 - p, of which float32 sees 1e-7
    p = np.where(
        rng.random(N) < 0.5, rng.uniform(0.01, 0.99, N), 1 - 10 ** rng.uniform(least, -1, N)
    )
    # On a step itself, which its own rounding must not miss, and in between.
    y = case.targets(6, parameters, dtype)
    step = case.exact(parameters, y)[0]["cdf"]
    on_step = (step > 1e-6) & (step < 1 - 10.0**least)
    levels = np.where(on_step, step, p).astype(dtype)
    ends = np.resize([0, 1, np.nan, -0.1, 1.1], N).astype(dtype)
    found = quantiles(
        case.make,
        arrays,
        jnp.asarray(np.stack([p.astype(dtype), levels, ends]))[..., None],
    )
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[0, :, 0], case.quantile(parameters, p.astype(dtype)))
    np.testing.assert_array_equal(found[1, on_step, 0], y[on_step])
    last = {"bernoulli": 1.0, "discretized-logistic": 2.0}.get(case.name, np.inf)
    expected = np.resize([case.lattice[0], last, np.nan, np.nan, np.nan], N)
    np.testing.assert_array_equal(found[2, :, 0], expected)


@functools.cache
def extremes():
    """Counts from 0 to 1e6 and beyond, of rates from 1e-3 to 1e6: masses to 40 digits."""
    points, exact = [], []
    for m, r in itertools.product([2.0**-10, 1.0, 1024.0, 1e6], [2.0**-6, 1.0, 1e4, np.inf]):
        spread = np.sqrt(m + m * m / r)
        for y in (0.0, np.round(m + 2 * spread), np.round(max(m - 3 * spread, 1)), 1e6):
            points.append((y, m, r))
            mass = exact_mass(y, m, r)
            exact.append([*mass, *exact_tail(y, m, r, mass)])
    return np.array(points).T, np.array(exact, float).T


def exact_mass(y, m, r):
    """``log P(y)`` and its slopes in the mean and in the concentration."""
    with mpmath.workdps(40):
        y, m, r = (mpmath.mpf(v) for v in (y, m, r))
        if mpmath.isinf(r):
            value, slopes = y * mpmath.log(m) - m - mpmath.loggamma(y + 1), (y / m - 1, 0)
        else:
            value = mpmath.loggamma(y + r) - mpmath.loggamma(r) - mpmath.loggamma(y + 1)
            value += r * mpmath.log(r / (r + m)) + y * mpmath.log(m / (r + m))
            in_r = mpmath.digamma(y + r) - mpmath.digamma(r) + mpmath.log(r / (r + m))
            slopes = y / m - (y + r) / (r + m), in_r + 1 - (r + y) / (r + m)
        return float(value), *(float(v) for v in slopes)


def exact_tail(y, m, r, mass, terms=100_000):
    """The logarithm of the tail beyond the mean and its slopes, by adding up what it consists of.

    By mpmath's incomplete beta function where that takes too many terms.
    """
    count, above, finite = LD(y), y + 1 > m, np.isfinite(r)
    m_, r_ = LD(m), LD(r) if finite else LD("1e2000")
    j = np.arange(terms, dtype=LD) if above else -1 - np.arange(min(int(y), terms), dtype=LD)
    at = count + j  # P(at + 1) / P(at), each over the one before
    sign = 1 if above else -1
    with np.errstate(over="ignore", under="ignore"):
        parts = np.cumprod((m_ / (1 + m_ / r_) * (1 + at / r_) / (at + 1)) ** sign)
    in_m = sign * np.cumsum(1 / m_ / (1 + m_ / r_) + 0 * at)
    in_r = sign * np.cumsum((m_ - at) / (r_ + at) / (r_ + m_))
    total = np.sum(parts) + (not above)
    if len(parts) < terms or parts[-1] < 1e-22 * total:
        changes = (float(np.sum(parts * slope) / total) for slope in (in_m, in_r))
        return mass[0] + float(np.log(total)), *(
            a + b for a, b in zip(mass[1:], changes, strict=True)
        )

    def log_tail(m, r):
        shapes = (y + 1, r, 0, m / (r + m)) if above else (r, y + 1, 0, r / (r + m))
        return mpmath.log(mpmath.betainc(*shapes, regularized=True))

    with mpmath.workdps(40):
        y, m, r, step = (mpmath.mpf(v) for v in (y, m, r, "1e-12"))
        in_m = (log_tail(m * (1 + step), r) - log_tail(m * (1 - step), r)) / (2 * step * m)
        in_r = (log_tail(m, r * (1 + step)) - log_tail(m, r * (1 - step))) / (2 * step * r)
        return float(log_tail(m, r)), float(in_m), float(in_r)


@DTYPES
def test_extreme_counts(dtype):
    eps = float(np.finfo(dtype).eps)
    (y, m, r), exact = extremes()
    log_mass, in_m, in_r, log_tail, tail_in_m, tail_in_r = exact
    upper = y + 1 > m
    case = BY_NAME["negative-binomial"]
    found, slopes, reverse = run_at(
        case, {"rate": m.astype(dtype), "concentration": r.astype(dtype)}, y.astype(dtype)
    )
    for value in (*reverse.values(), *(v for by in slopes.values() for v in by.values())):
        assert np.all(np.isfinite(value))
    compare(found["log_density"], log_mass, 6 * eps * (1 + np.abs(log_mass)), "log-mass")
    tail = np.where(upper, found["log_survival"], found["log_cdf"])
    # Where 1e6 counts meet a concentration of 1 / 64 the integrand bends within a 400th of its
    # interval: 1e-12 of the tail.
    bend = np.where((r < 0.1) & (y > 1e4), 5e-12, 0)
    compare(tail, log_tail, 40 * eps * (1 + np.abs(log_tail)) + bend, "tail")
    for parameter, of_mass, of_tail in (
        ("rate", in_m, tail_in_m),
        ("concentration", in_r, tail_in_r),
    ):
        terms = 0 if parameter == "rate" else np.where(np.isinf(r), 0, y / r / (r + y))
        size = 20 * eps * (np.abs(of_mass) + terms)
        compare(slopes[parameter]["log_density"], of_mass, size, f"log-mass in {parameter}")
        slope = np.where(upper, slopes[parameter]["log_survival"], slopes[parameter]["log_cdf"])
        size = (60 * eps + bend) * (np.abs(of_tail) + np.abs(of_mass) + terms)
        compare(slope, of_tail, size, f"tail in {parameter}")


def over_poisson(kind):
    return lambda rate, logit: kind(base=Poisson(rate=rate), logit=logit)


RATES = np.array([1e-3, 0.4, 9.99, 10.01, 250.0, 1e6])
LOGITS = np.array([-40.0, -1.0, 0.5, -2.0, 1.0, -1.0])


def _zeros(base, z, truncated=False):
    """The cdf of ``base`` with a share ``z`` of extra zeros."""
    first = base.cdf(0) * truncated
    return lambda y: (y >= 0) * (z + (1 - z) * (base.cdf(y) - first) / (1 - first))


SAMPLED = {
    "poisson": (Poisson, {"rate": RATES}, lambda rate: stats.poisson(rate).cdf),
    "negative-binomial": (
        NegativeBinomial,
        {"rate": RATES, "concentration": np.array([0.5, np.inf, 0.02, 7.0, 1e3, 0.3])},
        lambda rate, concentration: (
            stats.nbinom(
                np.minimum(concentration, 1e9), 1 / (1 + rate / np.minimum(concentration, 1e9))
            ).cdf
        ),
    ),
    "bernoulli": (
        Bernoulli,
        {"logit": LOGITS},
        lambda logit: stats.bernoulli(special.expit(logit)).cdf,
    ),
    "discretized-logistic": (
        partial(DiscretizedLogistic, **LEVELS),
        {"loc": np.linspace(-1.5, 2.5, 6), "scale": np.array([0.01, 0.1, 0.3, 1.0, 3.0, 0.02])},
        lambda loc, scale: (
            lambda y: np.where(y > 1.99, 1, (y > -1.01) * special.expit((y + 1 / 16 - loc) / scale))
        ),
    ),
    "zero-inflated": (
        over_poisson(ZeroInflated),
        {"rate": RATES, "logit": LOGITS},
        lambda rate, logit: _zeros(stats.poisson(rate), special.expit(logit)),
    ),
    "hurdle": (
        over_poisson(Hurdle),
        {"rate": RATES, "logit": LOGITS},
        lambda rate, logit: _zeros(stats.poisson(rate), special.expit(logit), truncated=True),
    ),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, np.float64) for name in SAMPLED),
        ("negative-binomial", np.float32),
    ],
)
def test_samples(name, dtype):
    # Randomised over the jumps of the exact cdf, the samples are uniform.
    make, parameters, cdf = SAMPLED[name]
    family = make(**{key: jnp.asarray(v, dtype)[:, None] for key, v in parameters.items()})
    draws = jax.jit(lambda family: family.sample(jax.random.key(1), (3000,)))(family)
    assert draws.shape == (3000, 6, 1)
    assert draws.dtype == dtype
    draws = np.asarray(draws, float)[..., 0]
    step = 0.125 if name == "discretized-logistic" else 1.0
    exact = cdf(**{key: v.astype(dtype).astype(float) for key, v in parameters.items()})
    below, at = exact(draws - step), exact(draws)
    levels = below + np.random.default_rng(2).random(draws.shape) * (at - below)
    assert np.all(at > below)
    for i in range(6):
        assert stats.kstest(levels[:, i], "uniform").pvalue > 1e-4


REAL = {
    "gamma": (
        lambda a, b, logit: Hurdle(base=Gamma(concentration=a, rate=b), logit=logit),
        lambda a, b: stats.gamma(a, scale=1 / b),
    ),
    "log-normal": (
        lambda a, b, logit: Hurdle(base=LogNormal(loc=a, scale=b), logit=logit),
        lambda a, b: stats.lognorm(b, scale=np.exp(a)),
    ),
}


@pytest.mark.parametrize("name", ["log-normal", "gamma"])
def test_hurdles_before_real_numbers(name):
    make, base = REAL[name]
    rng = np.random.default_rng(7)
    parameters = {"a": rng.uniform(0.4, 3, N), "b": rng.uniform(0.3, 1.5, N)}
    parameters["logit"] = np.where(
        rng.random(N) < 0.2, rng.choice([-40, 40], N), rng.normal(size=N)
    )
    y = base(parameters["a"], parameters["b"]).ppf(rng.uniform(0.01, 0.99, N))
    y = np.where(rng.random(N) < 0.3, 0, y)
    y[:3] = -1.5, np.nan, np.inf
    inner, zero = (y > 0) & np.isfinite(y), y == 0

    def exact(a, b, logit):
        law, z, rest = base(a, b), special.expit(logit), special.expit(-logit)
        with np.errstate(divide="ignore", invalid="ignore"):
            log_density = np.where(
                zero, np.log(z), np.log(rest) + law.logpdf(np.where(inner, y, 1))
            )
            survival = np.where(y < 0, 1, rest * law.sf(y))
            cdf = np.where(y < 0, 0, z + rest * law.cdf(y))
            found = {"log_density": np.where(inner | zero, log_density, y * 0 - np.inf)}
            found |= {"cdf": cdf, "survival": survival, "log_cdf": np.log(cdf)}
            found["log_cdf"] = np.where(survival < 0.5, np.log1p(-survival), np.log(cdf))
            found["log_survival"] = np.where(y >= 0, np.log(rest) + law.logsf(y), np.log(survival))
        found["mean"] = rest * law.mean()
        return found | {"variance": rest * (law.var() + z * law.mean() ** 2)}

    case = Case(name, make, None, None)
    found, slopes, reverse = run_at(case, parameters, y)
    values = exact(**parameters)
    values["log_density"][np.isnan(y)] = np.nan
    values["log_density"][[0, 2]] = -np.inf
    for key, value in values.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-11, atol=1e-11, err_msg=key)
    inside = inner | zero
    for parameter, at in parameters.items():
        assert np.all(np.isfinite(reverse[parameter][~np.isnan(y)]))
        np.testing.assert_array_equal(slopes[parameter]["log_density"][[0, 2]], 0)
        near = [
            {key: v[inside] for key, v in exact(**{**parameters, parameter: at + step}).items()}
            for step in (-2e-3, -1e-3, 1e-3, 2e-3)
        ]
        for key in values:
            slope = (8 * (near[2][key] - near[1][key]) - near[3][key] + near[0][key]) / 12e-3
            found_slope = slopes[parameter][key][inside]
            size = 1e-8 * np.max(np.abs(slope))
            np.testing.assert_allclose(
                found_slope,
                slope,
                rtol=1e-8,
                atol=1e-11 + size,
                err_msg=f"{key} {parameter}",
            )
    family = make(**{key: jnp.asarray(v)[:, None] for key, v in parameters.items()})
    z, rest = special.expit(parameters["logit"]), special.expit(-parameters["logit"])
    p = rng.uniform(0.001, 0.999, N)
    p[:5] = 0, 1, np.nan, -0.1, 1.1
    with np.errstate(invalid="ignore"):
        within = np.clip(1 - (1 - p) / rest, 0, 1)
        expected = base(parameters["a"], parameters["b"]).ppf(within)
    expected[:5] = 0, np.inf, np.nan, np.nan, np.nan
    quantile = jax.jit(lambda family, p: family.quantile(p))(family, jnp.asarray(p)[:, None])[:, 0]
    close = np.abs(p - z) < 1e-9
    np.testing.assert_allclose(quantile[~close], expected[~close], rtol=1e-9)
    draws = np.asarray(jax.jit(lambda family: family.sample(jax.random.key(3), (4000,)))(family))
    assert draws.shape == (4000, N, 1)
    for i in range(4):
        column, law = draws[:, i, 0], base(parameters["a"][i], parameters["b"][i])
        zeros = int(np.sum(column == 0))
        assert stats.binomtest(zeros, 4000, z[i]).pvalue > 1e-5
        if zeros < 4000:
            assert stats.kstest(law.cdf(column[column != 0]), "uniform").pvalue > 1e-5


def mixture_of(seed, rows, K=3):
    rng = np.random.default_rng(seed)
    rate = np.exp(rng.uniform(np.log(0.05), np.log(300), (rows, K, 2)))
    r = np.exp(rng.uniform(np.log(0.5), np.log(1e4), (rows, K, 2)))
    logits = rng.normal(size=(rows, K))
    components = NegativeBinomial(rate=jnp.asarray(rate), concentration=jnp.asarray(r))
    mixture = jaxmdn.Mixture(logits=jnp.asarray(logits), components=components)
    return mixture, special.softmax(logits, -1), stats.nbinom(r, r / (r + rate))


@jax.jit
def mix(mixture, y, p, key):
    integers = jaxmdn.log_prob(mixture, y.astype(jnp.int32))
    return mixing(mixture, y, p, key, 4000) | rearranged(mixture, y) | {"integers": integers}


def mixed(weights, values):
    return np.sum(weights[..., None] * values, axis=-2)


def test_mixtures():
    rows = 8
    mixture, weights, oracle = mixture_of(8, rows)
    rng = np.random.default_rng(9)
    y = oracle.ppf(rng.uniform(0.05, 0.95, (rows, 3, 2)))[:, 0]
    p = rng.uniform(1e-4, 1 - 1e-4, (rows, 2))
    found = mix(mixture, jnp.asarray(y), jnp.asarray(p), jax.random.key(10))
    each = oracle.logpmf(y[:, None])
    value = special.logsumexp(np.log(weights) + np.sum(each, -1), axis=-1)
    second = special.logsumexp(np.log(weights) + each[..., 1], axis=-1)
    expected = dict.fromkeys(("log_prob", "integers", "vmap", "merge", "swapped"), value)
    expected |= {"marginal": second, "conditional": value - second}
    expected |= {"single": np.sum(each[:, 0], -1), "cdf": mixed(weights, oracle.cdf(y[:, None]))}
    for name, values in expected.items():  # SciPy's own error: a few hundred rounding units
        np.testing.assert_allclose(found[name], values, rtol=1e-10, atol=1e-11, err_msg=name)
    check_quantiles(np.asarray(found["quantile"]), p, weights, oracle)
    draws = np.asarray(found["sample"])
    assert draws.dtype == np.float64
    below, at = (mixed(weights, oracle.cdf(draws[..., None, :] - back)) for back in (1, 0))
    levels = below + rng.random(draws.shape) * (at - below)
    for index in np.ndindex(rows, 2):
        assert stats.kstest(levels[:, *index], "uniform").pvalue > 1e-5
    # The library's own transform, with its own random numbers.
    pit = jaxmdn.pit(mixture, jnp.asarray(draws), key=jax.random.key(11))
    assert np.all(pit >= below - 1e-9)
    assert np.all(pit <= at + 1e-9)
    for index in np.ndindex(rows, 2):
        assert stats.kstest(pit[:, *index], "uniform").pvalue > 1e-5


def check_quantiles(y, p, weights, oracle):
    """The smallest count with ``cdf >= p``."""
    assert np.all(mixed(weights, oracle.cdf(y[..., None, :])) >= p * (1 - 1e-9))
    assert np.all(mixed(weights, oracle.cdf(y[..., None, :] - 1)) <= p * (1 + 1e-9))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_quantiles_of_random_mixtures(seed):
    # Eight mixtures of two dimensions an example: two hundred in all.
    mixture, weights, oracle = mixture_of(seed, 8)
    p = np.random.default_rng(seed).uniform(1e-4, 1 - 1e-4, (8, 2))
    check_quantiles(np.asarray(jaxmdn.quantile(mixture, jnp.asarray(p))), p, weights, oracle)


def test_integers_are_counts():
    # Under strict promotion, in every family, alone and side by side.
    y = np.array([[0, 1], [1, 0], [2, 5]])
    rate, logit = jnp.full((2, 2), 1.5), jnp.full((2, 2), 0.3)
    poisson, bernoulli = Poisson(rate=rate), Bernoulli(logit=logit)
    sides = jaxmdn.components.Independent(
        parts=(poisson.marginal((0,)), bernoulli.marginal((1,))), dims=((0,), (1,))
    )
    of_poisson = stats.poisson(1.5).logpmf(y)
    of_bernoulli = stats.bernoulli(special.expit(0.3)).logpmf(y)
    z = special.expit(0.3)
    positive = np.log(1 - z) + of_poisson - np.log(-np.expm1(-1.5))
    edges = special.expit((np.array([y - 0.5, y + 0.5]) - 1.5) / 0.8)
    cases = [
        (
            DiscretizedLogistic(loc=rate, scale=jnp.full((2, 2), 0.8)),
            np.log(edges[1] - np.where(y > 0, edges[0], 0)),
        ),
        (poisson, of_poisson),
        (bernoulli, of_bernoulli),
        (sides, np.stack([of_poisson[:, 0], of_bernoulli[:, 1]], -1)),
        (Hurdle(base=poisson, logit=logit), np.where(y == 0, np.log(z), positive)),
        (
            ZeroInflated(base=poisson, logit=logit),
            np.log(np.where(y == 0, z, 0) + (1 - z) * np.exp(of_poisson)),
        ),
    ]
    for family, expected in cases:
        mixture = jaxmdn.Mixture(logits=jnp.zeros(2), components=family)
        found = jaxmdn.log_prob(mixture, jnp.asarray(y, jnp.int32))
        np.testing.assert_allclose(found, np.sum(expected, -1), rtol=1e-13)
        floating = jaxmdn.log_prob(mixture, jnp.asarray(y, float))
        np.testing.assert_array_equal(found, floating)


def test_no_rate_at_all():
    @jax.jit
    @jax.value_and_grad
    def value(rate, y):
        return Poisson(rate=rate).marginal_log_prob(y)[0]

    for y, expected, slope in ((0.0, 0.0, -1.0), (3.0, -np.inf, 0.0)):
        found, gradient = value(jnp.zeros(1), jnp.full(1, y))
        assert (found, gradient[0]) == (expected, slope)
    family = Poisson(rate=jnp.array([0.0, -1.0, np.nan]))
    np.testing.assert_array_equal(family.marginal_log_prob(jnp.zeros(3)), [0, np.nan, np.nan])
    np.testing.assert_array_equal(family.cdf(jnp.zeros(3))[0], 1)
    np.testing.assert_array_equal(family.sample(jax.random.key(0)), [0, np.nan, np.nan])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_moments_are_recovered(dtype):
    rng = np.random.default_rng(12)
    mean = np.exp(rng.uniform(-3, 8, 40))
    variance = mean + mean**2 * np.exp(rng.uniform(-1, 3, 40))
    mean, variance = (jnp.asarray(v, dtype)[:, None] for v in (mean, variance))
    rtol = 40 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(Poisson.from_moments(mean, variance).rate, mean, rtol=rtol)
    family = NegativeBinomial.from_moments(mean, variance)
    m, r = np.asarray(family.rate, float), np.asarray(family.concentration, float)
    np.testing.assert_allclose(m, mean, rtol=rtol)
    # The variance less the mean is what is left for the concentration.
    np.testing.assert_allclose(m + m * m / r, variance, rtol=rtol)
    for kind in (ZeroInflated, Hurdle):
        for base in (Gamma,) if kind is Hurdle else (NegativeBinomial,):
            found = kind.from_moments(mean, variance, base=base)
            assert found.dtype == dtype
            z = special.expit(np.asarray(found.logit, float))
            inner = jax.tree.map(lambda leaf: np.asarray(leaf, float), found.base)
            a, b = jax.tree.leaves(inner)
            own = (a / b, a / b**2) if base is Gamma else (a, a + a * a / b)
            np.testing.assert_allclose((1 - z) * own[0], mean, rtol=rtol)
            total = (1 - z) * (own[1] + z * own[0] ** 2)
            np.testing.assert_allclose(total, variance, rtol=rtol)
    share = jnp.asarray(rng.uniform(1e-4, 0.9999, (9, 1)), dtype)
    logit = Bernoulli.from_moments(share, share).logit
    np.testing.assert_allclose(special.expit(np.asarray(logit, float)), share, rtol=rtol)
    # Levels a tenth of the scale apart, the ends far away.
    mean, variance = jnp.full((1, 1), 100.3, dtype), jnp.full((1, 1), 300.0, dtype)
    found = DiscretizedLogistic.from_moments(mean, variance)
    (table, _), level = _levels_of(found), np.arange(256)
    np.testing.assert_allclose(np.sum(table * level), 100.3, rtol=1e-5)
    np.testing.assert_allclose(np.sum(table * (level - 100.3) ** 2), 300.0, rtol=1e-3)


def _levels_of(found):
    edges = np.arange(255) + 0.5
    cdf = special.expit((edges - float(found.loc[0, 0])) / float(found.scale[0, 0]))
    return np.diff(cdf, prepend=0, append=1), edges
