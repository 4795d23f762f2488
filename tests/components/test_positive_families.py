"""Families of positive targets, and the skewed one on the real line: against SciPy."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from family_checks import (
    Case,
    check_gradients,
    check_mixture,
    check_moments,
    check_normalization,
    check_outside,
    check_samples,
    check_values,
    mixture_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

import jaxmdn
from jaxmdn.components import AsymmetricLaplace, Gamma, LogNormal, Weibull
from jaxmdn.special import gamma as gamma_functions


def _log_uniform(low, high):
    return lambda rng, shape: np.exp(rng.uniform(np.log(low), np.log(high), shape))


CASES = [
    Case(
        "log-normal",
        LogNormal,
        lambda rng, shape: {
            "loc": rng.normal(size=shape),
            "scale": _log_uniform(0.2, 1.5)(rng, shape),
        },
        lambda loc, scale: stats.lognorm(scale, scale=np.exp(loc)),
    ),
    Case(
        "gamma",
        Gamma,
        lambda rng, shape: {
            "concentration": _log_uniform(0.3, 30)(rng, shape),
            "rate": _log_uniform(0.3, 3)(rng, shape),
        },
        lambda concentration, rate: stats.gamma(concentration, scale=1 / rate),
    ),
    Case(
        "weibull",
        Weibull,
        lambda rng, shape: {
            "concentration": _log_uniform(0.5, 20)(rng, shape),
            "scale": _log_uniform(0.3, 3)(rng, shape),
        },
        lambda concentration, scale: stats.weibull_min(concentration, scale=scale),
    ),
    Case(
        "asymmetric-laplace",
        AsymmetricLaplace,
        lambda rng, shape: {
            "loc": rng.normal(size=shape),
            "scale": _log_uniform(0.3, 3)(rng, shape),
            "asymmetry": _log_uniform(0.3, 3)(rng, shape),
        },
        lambda loc, scale, asymmetry: stats.laplace_asymmetric(asymmetry, loc=loc, scale=scale),
    ),
]
POSITIVE = CASES[:3]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_positive = pytest.mark.parametrize("case", POSITIVE, ids=lambda case: case.name)


@every_case
def test_values(case):
    check_values(case, np.float64, {"any": 1e-11, "variance": 1e-10})
    # float32: the tails amplify a rounding of y by y times the hazard, up to 30 here, and
    # quantiles one of log y by as much.
    check_values(case, np.float32, {"any": 2e-5})


@every_case
def test_gradients(case):
    check_gradients(case)


@every_case
def test_integrates_to_one(case):
    check_normalization(case)


@every_case
def test_samples(case):
    check_samples(case)


@every_case
def test_mixtures(case):
    check_mixture(case)


@every_positive
def test_outside_the_support(case):
    check_outside(case, [-np.inf, -3.0, -1e-300, np.inf], 1.0)


@pytest.mark.parametrize(
    ("family", "names"),
    [(Gamma, ("concentration", "rate")), (Weibull, ("concentration", "scale"))],
)
@pytest.mark.parametrize(("shape", "sign"), [(0.5, np.inf), (1.0, 0.0), (2.0, -np.inf)])
def test_the_limit_at_zero(family, names, shape, sign):
    def value(shape, unit, y):
        member = family(**dict(zip(names, (shape, unit), strict=True)))
        return member.marginal_log_prob(y)[0]

    arguments = (jnp.array([shape]), jnp.array([2.0]), jnp.zeros(1))
    limit = {"rate": np.log(2.0), "scale": -np.log(2.0)}[names[1]] if sign == 0 else sign
    np.testing.assert_allclose(value(*arguments), limit, rtol=1e-15)
    gradients = jax.grad(value, argnums=(0, 1, 2))(*arguments)
    assert all(np.isfinite(g[0]) for g in gradients)
    assert (gradients[1][0] != 0) == (sign == 0)


def test_log_normal_vanishes_at_zero():
    member = LogNormal(loc=jnp.zeros(1), scale=jnp.ones(1))
    assert member.marginal_log_prob(jnp.zeros(1))[0] == -np.inf


@every_positive
def test_moments_are_recovered(case):
    rng = np.random.default_rng(14)
    mean = np.exp(rng.normal(size=40))
    check_moments(case, mean, (mean * np.exp(rng.uniform(-5, 0.5, 40))) ** 2, rtol=1e-9)


@every_positive
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_moments_are_finite(case, dtype):
    mean, ratio = (jnp.asarray(x, dtype)[:, None] for x in np.meshgrid([1e-6, 1, 1e6], [1e-3, 3]))
    mean, ratio = mean.reshape(-1, 1), ratio.reshape(-1, 1)
    found = case.family.from_moments(mean, (ratio * mean) ** 2)
    for leaf in jax.tree.leaves(found):
        assert leaf.dtype == dtype
        assert bool(jnp.all(jnp.isfinite(leaf)))
    np.testing.assert_allclose(found.mean(), mean, rtol=1e-3)


def test_asymmetric_laplace_of_moments():
    rng = np.random.default_rng(15)
    mean, variance = rng.normal(size=9), np.exp(rng.normal(size=9))
    check_moments(CASES[3], mean, variance, rtol=1e-12, asymmetry=0.4)
    with pytest.raises(ValueError, match="asymmetry must be positive, got -1"):
        AsymmetricLaplace.from_moments(jnp.zeros(1), jnp.ones(1), asymmetry=-1.0)


@every_case
def test_a_change_of_unit(case):
    scales = [2.5] if case in POSITIVE else [2.5, -0.7]
    parameters = case.parameters(16, (5, 1))
    family, oracle = case.make(parameters), case.exact(parameters)
    assert family.closed_under == ("scale" if case in POSITIVE else "affine")
    for scale in scales:
        shift = 0.0 if case in POSITIVE else 0.3
        y = oracle.ppf(np.linspace(0.1, 0.9, 5)[:, None])
        moved = family.affine(jnp.array([shift]), jnp.array([scale]))
        value = moved.marginal_log_prob(jnp.asarray(shift + scale * y))
        np.testing.assert_allclose(value, oracle.logpdf(y) - np.log(abs(scale)), rtol=1e-12)


SHAPES = np.array([1e-2, 0.1, 1.0, 30.0, 1e4, 1e6])


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 2e-12), (np.float32, 1e-5)])
def test_gamma_of_extreme_shape(dtype, rtol):
    # Against 30 digits. JAX's own float32 form of the density is off by 1e-1 for shape 1e6.
    with mpmath.workdps(30):
        points, exact, slopes = [], [], []
        for a in SHAPES.astype(dtype):
            for z in (-3.0, -0.5, 0.5, 3.0):
                x = dtype(max(a + z * np.sqrt(a), 0.2 * a))
                a_, x_ = mpmath.mpf(float(a)), mpmath.mpf(float(x))
                points.append((a, x))
                exact.append(float(a_ * mpmath.log(x_) - x_ - mpmath.loggamma(a_)))
                slopes.append(float(mpmath.log(x_) - mpmath.digamma(a_)))
    a, x = (jnp.asarray(column) for column in np.array(points, dtype).T)
    value, slope = jax.jvp(lambda a: gamma_functions.log_kernel(x, a), (a,), (jnp.ones_like(a),))
    np.testing.assert_allclose(value, exact, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(slope, slopes, rtol=rtol, atol=rtol * 0.1)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 2e-12), (np.float32, 1e-4)])
def test_gamma_tails_and_quantiles_of_extreme_shape(dtype, rtol):
    # SciPy itself is off by 1e-6 in a lower tail of shape 1e6, so that it ends at 1e5 here. Below
    # shape one the tail above a small target has absolute accuracy (see the class).
    rng = np.random.default_rng(17)
    a = np.exp(rng.uniform(np.log(1e-2), np.log(1e5), 500)).astype(dtype)
    p = np.where(rng.random(500) < 0.5, 10 ** rng.uniform(-6, -0.3, 500), rng.uniform(0.5, 1, 500))
    p = p.astype(dtype)
    x = special.gammaincinv(a.astype(float), p.astype(float))
    usable = x > float(np.finfo(dtype).tiny)
    a, p, x = a[usable], p[usable], x[usable].astype(dtype)
    below, above = jax.jit(gamma_functions.tails)(jnp.asarray(x), jnp.asarray(a))
    a64, x64 = a.astype(float), x.astype(float)
    np.testing.assert_allclose(below, special.gammainc(a64, x64), rtol=rtol)
    np.testing.assert_allclose(above, special.gammaincc(a64, x64), rtol=rtol)
    found = jax.jit(gamma_functions.quantile)(jnp.asarray(p), jnp.asarray(a))
    np.testing.assert_allclose(found, special.gammaincinv(a64, p.astype(float)), rtol=2 * rtol)


def test_gamma_tails_have_the_derivative_in_the_shape():
    points = [(0.05, 0.3), (0.05, 2.0), (5.0, 4.0), (30.0, 80.0), (400.0, 380.0)]
    with mpmath.workdps(30):
        step = mpmath.mpf("1e-10")
        exact = [
            [
                float(
                    (
                        mpmath.gammainc(a + step, *ends, regularized=True)
                        - mpmath.gammainc(a - step, *ends, regularized=True)
                    )
                    / (2 * step)
                )
                for ends in ((0, x), (x, mpmath.inf))
            ]
            for a, x in points
        ]
    a, x = (jnp.asarray(column) for column in np.array(points).T)
    found = jax.jvp(lambda a: gamma_functions.tails(x, a), (a,), (jnp.ones_like(a),))[1]
    np.testing.assert_allclose(np.stack(found, -1), exact, rtol=1e-11)


def test_weibull_variance_of_large_and_small_shape():
    # 1 + 1 / k and 1 + 2 / k differ by nothing in float32 for k = 1e4.
    shapes = np.array([0.3, 0.9, 1.7, 3.0, 40.0, 1e4])
    with mpmath.workdps(40):
        exact = [
            float(mpmath.gamma(1 + 2 / mpmath.mpf(k)) - mpmath.gamma(1 + 1 / mpmath.mpf(k)) ** 2)
            for k in shapes
        ]
    for dtype, rtol in ((np.float64, 1e-12), (np.float32, 2e-5)):
        # 0.3 and the like are rounded to float32 first: worth 1e-6 of the variance.
        member = Weibull(concentration=jnp.asarray(shapes, dtype), scale=jnp.ones(6, dtype))
        np.testing.assert_allclose(member.variance(), exact, rtol=rtol)


def test_weibull_far_out_stays_finite():
    member = Weibull(concentration=jnp.full(1, 50.0), scale=jnp.ones(1))
    point = jnp.full(1, 1e30)
    value, slope = jax.value_and_grad(lambda y: member.marginal_log_prob(y)[0])(point)
    assert np.isfinite(value)
    assert np.isfinite(slope[0])
    assert value < -1e100
    with np.errstate(over="ignore"):
        expected = stats.weibull_min(50.0).logpdf(2.0)
    np.testing.assert_allclose(member.marginal_log_prob(jnp.full(1, 2.0))[0], expected, rtol=1e-13)


@every_case
def test_bfloat16_is_computed_in_float32(case):
    mixture, _, _ = mixture_of(case, 18)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), mixture)
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    y = jaxmdn.quantile(exact, 0.4)
    assert jaxmdn.log_prob(half, y).dtype == jnp.float32
    np.testing.assert_allclose(jaxmdn.log_prob(half, y), jaxmdn.log_prob(exact, y), rtol=1e-6)
    assert jaxmdn.sample(jax.random.key(0), half).dtype == jnp.bfloat16


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), index=st.sampled_from(range(len(CASES))))
def test_quantile_inverts_the_exact_cdf_of_random_mixtures(seed, index):
    # Forty mixtures of two dimensions an example: a thousand in all.
    mixture, weights, oracle = mixture_of(CASES[index], seed, rows=40)
    p = np.random.default_rng(seed).uniform(1e-5, 1 - 1e-5, (40, 2))
    root = np.asarray(jaxmdn.quantile(mixture, jnp.asarray(p)))
    reached = np.sum(weights[..., None] * oracle.cdf(root[:, None]), axis=1)
    np.testing.assert_allclose(reached, p, rtol=1e-9, atol=1e-11)
