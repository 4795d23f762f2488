"""Scores of mixtures that lie many of their scales from zero, in float32 against float64.

Numbers are the same in both: what float32 has rounded, float64 takes as it is. On the whole line
nothing is lost, since the quadrature counts from the components' centre. A density of positive
numbers or shares is asked in ``log y`` or in ``y`` itself, whose rounding, ``eps`` of them, is
``distance eps`` standard deviations; so is the density of a hurdle, which has to keep its zero.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from own_families import Gumbel

import jaxmdn
from jaxmdn import components as c

ROWS, K, SIZE = 100, 3, 60.0
LINE = ("normal", "laplace", "logistic", "student-t", "asymmetric-laplace", "gumbel")
EPS = float(np.finfo(np.float32).eps)


def near(rng, value, share=0.3):
    return value * np.exp(share * rng.normal(size=(ROWS, K, 1)))


def on_line(rng, distance):
    loc = distance * SIZE + SIZE * rng.normal(size=(ROWS, K, 1))
    return {"loc": loc, "scale": near(rng, SIZE)}


def with_logit(draw):
    return lambda rng, d: {**draw(rng, d), "logit": rng.normal(size=(ROWS, K, 1))}


def gamma(rng, d):
    return {"concentration": np.full((ROWS, K, 1), d * d), "rate": d * d / near(rng, d, 1 / d)}


def counts(rng, d):
    return {"rate": d * d + d * rng.normal(size=(ROWS, K, 1))}


def over(kind, base):
    return lambda logit, **rest: kind(base=base(**rest), logit=logit)


def negative(loc, scale):
    return c.TruncatedNormal(loc=-loc, scale=scale, lower=-np.inf, upper=0.0)


#: Each family, and parameters at so many standard deviations from zero.
FAMILIES = {
    "normal": (c.Normal, on_line),
    "laplace": (c.Laplace, on_line),
    "logistic": (c.Logistic, on_line),
    "student-t": (c.StudentT, lambda r, d: {**on_line(r, d), "df": 1.5 + near(r, 4.0, 1.0)}),
    "asymmetric-laplace": (
        c.AsymmetricLaplace,
        lambda r, d: {**on_line(r, d), "asymmetry": near(r, 1.0)},
    ),
    "gumbel": (Gumbel, on_line),
    "positive-normal": (c.TruncatedNormal, on_line),
    "negative-normal": (negative, on_line),
    "gamma": (c.Gamma, gamma),
    "log-normal": (
        c.LogNormal,
        lambda r, d: {"loc": np.log(SIZE * near(r, d, 1 / d)), "scale": near(r, 1 / d)},
    ),
    "weibull": (
        c.Weibull,
        lambda r, d: {"concentration": near(r, d), "scale": SIZE * near(r, d, 1 / d)},
    ),
    "beta": (
        c.Beta,
        lambda r, d: {name: near(r, d * d, 1 / d) for name in ("concentration1", "concentration0")},
    ),
    "logit-normal": (
        c.LogitNormal,
        lambda r, d: {"loc": 1 + r.normal(size=(ROWS, K, 1)) / d, "scale": near(r, 1 / d)},
    ),
    "von-mises": (
        c.VonMises,
        lambda r, d: {
            "loc": 2 + r.normal(size=(ROWS, K, 1)) / d,
            "concentration": near(r, d * d),
        },
    ),
    "poisson": (c.Poisson, counts),
    "negative-binomial": (
        c.NegativeBinomial,
        lambda r, d: {**counts(r, d), "concentration": near(r, d * d)},
    ),
    "zero-inflated": (over(c.ZeroInflated, c.Poisson), with_logit(counts)),
    "hurdle-normal": (over(c.Hurdle, c.Normal), with_logit(on_line)),
    "hurdle-gamma": (over(c.Hurdle, c.Gamma), with_logit(gamma)),
}
SHORT = ("asymmetric-laplace", "gamma")
crps = jax.jit(jaxmdn.crps)


@pytest.mark.parametrize("distance", [1e1, 1e3, 1e5])
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in SHORT else pytest.mark.nightly) for n in FAMILIES],
)
def test_crps_in_float32(name, distance):
    make, draw = FAMILIES[name]
    rng = np.random.default_rng(0)
    rounded = {n: np.float32(value) for n, value in draw(rng, distance).items()}
    logits = np.float32(rng.normal(size=(ROWS, K)))

    def mixture(dtype):
        parameters = {n: jnp.asarray(value, dtype) for n, value in rounded.items()}
        return jaxmdn.Mixture(logits=jnp.asarray(logits, dtype), components=make(**parameters))

    exact = mixture(np.float64)
    y = np.float32(jaxmdn.sample(jax.random.key(0), exact))
    found = np.float64(crps(mixture(np.float32), jnp.asarray(y)))
    expected = np.asarray(crps(exact, jnp.asarray(y, np.float64)))
    assert np.isfinite(found).all()
    room = 1e-5 + (0 if name in LINE else 10 * EPS * distance)
    np.testing.assert_allclose(found, expected, rtol=room)


NIGHTLY = pytest.mark.nightly


@pytest.mark.parametrize("mean", [1e9, *(pytest.param(m, marks=NIGHTLY) for m in (1e7, 1e15))])
def test_large_counts_in_float32(mean):
    """Above 2^24 some whole numbers are missing: what is as wide as its mean keeps its digits."""
    rng = np.random.default_rng(0)
    shape = {"rate": mean * near(rng, 1.0), "concentration": near(rng, 4.0)}
    rounded = {n: np.float32(value) for n, value in shape.items()}
    logits = np.float32(rng.normal(size=(ROWS, K)))
    levels = np.float32([0.001, 0.3, 0.999])

    @jax.jit
    def ask(mixture, y, levels):
        probabilities = jaxmdn.cdf(mixture, y), jaxmdn.pit(mixture, y, key=jax.random.key(0))
        return jaxmdn.crps(mixture, y), jaxmdn.quantile(mixture, levels), probabilities

    def answers(dtype):
        parameters = {n: jnp.asarray(value, dtype) for n, value in rounded.items()}
        components = c.NegativeBinomial(**parameters)
        mixture = jaxmdn.Mixture(logits=jnp.asarray(logits, dtype), components=components)
        return ask(mixture, jnp.asarray(y, dtype), jnp.asarray(levels, dtype))

    y = np.float32(np.round(rounded["rate"][:, 0] * np.exp(rng.normal(size=(ROWS, 1)))))
    found, exact = answers(np.float32), answers(np.float64)
    np.testing.assert_allclose(found[0], exact[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], exact[1], rtol=1e-4)  # .999 has 6e-5 of what is above it
    for one, other in zip(found[2], exact[2], strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)
