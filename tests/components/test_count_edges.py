"""Counts at their extremes, their samples there, and as integers: sums, SciPy and mpmath."""

import functools
import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from cases import BY_NAME
from contract import DTYPES, compare, run
from oracle_counts import LD, ZeroLaw, negative_binomial
from scipy import special, stats

import jaxmdn
from jaxmdn.components import (
    Bernoulli,
    DiscretizedLogistic,
    Hurdle,
    NegativeBinomial,
    Poisson,
    ZeroInflated,
)


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


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_counts(dtype):
    eps = float(np.finfo(dtype).eps)
    (y, m, r), exact = extremes()
    log_mass, in_m, in_r, log_tail, tail_in_m, tail_in_r = exact
    upper = y + 1 > m
    case = BY_NAME["negative-binomial"]
    parameters = {"rate": m.astype(dtype)[:, None], "concentration": r.astype(dtype)[:, None]}
    found, slopes, _, gradient, _ = run(case, parameters, y.astype(dtype)[:, None])
    for value in (*dict(gradient).values(), *(slopes[x][k] for x in parameters for k in found)):
        assert np.all(np.isfinite(value))
    found = {name: value[:, 0] for name, value in found.items()}
    slopes = {x: {k: v[:, 0] for k, v in slopes[x].items()} for x in parameters}
    compare(found["log_prob"], log_mass, 6 * eps * (1 + np.abs(log_mass)), "log-mass")
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
        compare(slopes[parameter]["log_prob"], of_mass, size, f"log-mass in {parameter}")
        slope = np.where(upper, slopes[parameter]["log_survival"], slopes[parameter]["log_cdf"])
        size = (60 * eps + bend) * (np.abs(of_tail) + np.abs(of_mass) + terms)
        compare(slope, of_tail, size, f"tail in {parameter}")


def test_an_even_chance_has_the_slopes_of_any_other():
    """A head starts at a logit of zero."""
    for function, slope in (("mean", 0.25), ("cdf", -0.25), ("survival", 0.25), ("variance", 0.0)):

        def value(logit, function=function):
            own = Bernoulli(logit=logit)
            return getattr(own, function)(*[jnp.zeros(1)] * (function in ("cdf", "survival")))[0]

        for grad in (jax.grad, jax.jacfwd):
            assert jax.jit(grad(value))(jnp.zeros(1))[0] == slope


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

    @jax.jit
    def values(families, integers, floating):
        mixtures = [jaxmdn.Mixture(logits=jnp.zeros(2), components=f) for f in families]
        return [[jaxmdn.log_prob(m, y) for y in (integers, floating)] for m in mixtures]

    pairs = values([f for f, _ in cases], jnp.asarray(y, jnp.int32), jnp.asarray(y, float))
    for (found, floating), (_, expected) in zip(pairs, cases, strict=True):
        np.testing.assert_allclose(found, np.sum(expected, -1), rtol=1e-13)
        np.testing.assert_array_equal(found, floating)


def test_no_rate_at_all():
    rate = np.resize([0.0, 0.0, -1.0, np.nan], (64, 1))
    y = np.resize([0.0, 3.0, 0.0, 0.0], (64, 1))
    values, slopes, *_ = run(BY_NAME["poisson"], {"rate": rate}, y)
    np.testing.assert_array_equal(values["log_prob"][:4, 0], [0.0, -np.inf, np.nan, np.nan])
    np.testing.assert_array_equal(slopes["rate"]["log_prob"][:2, 0], [-1.0, 0.0])
    np.testing.assert_array_equal(values["cdf"][:2, 0], 1)
    draws = jax.jit(lambda rate: Poisson(rate=rate).sample(jax.random.key(0)))(
        jnp.asarray(rate[1:4, 0])
    )
    np.testing.assert_array_equal(draws, [0, np.nan, np.nan])


RATES = np.array([1e-3, 0.4, 9.99, 10.01, 250.0, 1e6])
SAMPLED = {
    "poisson": (Poisson, {"rate": RATES}, lambda rate: stats.poisson(rate)),
    "negative-binomial": (
        NegativeBinomial,
        {"rate": RATES, "concentration": np.array([0.5, np.inf, 0.02, 7.0, 1e3, 0.3])},
        negative_binomial,
    ),
    "zero-inflated": (
        lambda rate, logit: ZeroInflated(base=Poisson(rate=rate), logit=logit),
        {"rate": RATES, "logit": np.array([-40.0, -1.0, 0.5, -2.0, 1.0, -1.0])},
        lambda rate, logit: ZeroLaw(stats.poisson(rate), logit, False),
    ),
    "hurdle": (
        lambda rate, logit: Hurdle(base=Poisson(rate=rate), logit=logit),
        {"rate": RATES, "logit": np.array([-40.0, -1.0, 0.5, -2.0, 1.0, -1.0])},
        lambda rate, logit: ZeroLaw(stats.poisson(rate), logit, True),
    ),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, np.float64) for name in SAMPLED), ("negative-binomial", np.float32)],
)
def test_samples_of_small_and_large_rates(name, dtype):
    # Randomised over the jumps of the exact cdf, the samples are uniform.
    make, parameters, law = SAMPLED[name]
    family = make(**{key: jnp.asarray(v, dtype)[:, None] for key, v in parameters.items()})
    draws = jax.jit(lambda family: family.sample(jax.random.key(1), (3000,)))(family)
    assert draws.shape == (3000, 6, 1)
    assert draws.dtype == dtype
    draws = np.asarray(draws, float)[..., 0]
    exact = law(**{key: v.astype(dtype).astype(float) for key, v in parameters.items()})
    below, at = exact.cdf(draws - 1), exact.cdf(draws)
    levels = below + np.random.default_rng(2).random(draws.shape) * (at - below)
    assert np.all(at > below)
    for i in range(6):
        assert stats.kstest(levels[:, i], "uniform").pvalue > 1e-4
