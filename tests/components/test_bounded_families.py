"""Families between bounds: against SciPy, and against integrals where SciPy loses its digits."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from family_checks import (
    Case,
    Through,
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
from jaxmdn.components import Beta, LogitNormal, TruncatedNormal
from jaxmdn.special import beta as beta_functions


def _log_uniform(rng, low, high, shape):
    return np.exp(rng.uniform(np.log(low), np.log(high), shape))


def _concentrations(rng, shape):
    return {
        "concentration1": _log_uniform(rng, 0.5, 20, shape),
        "concentration0": _log_uniform(rng, 0.5, 20, shape),
    }


def _normals(rng, shape):
    return {"loc": 2 * rng.normal(size=shape), "scale": _log_uniform(rng, 0.3, 2, shape)}


def _logit_normal(lower, upper):
    width = upper - lower

    def oracle(loc, scale):
        return Through(
            stats.norm(loc, scale),
            lambda x: lower + width * special.expit(x),
            lambda y: special.logit((y - lower) / width),
            lambda y: np.log(width) - np.log(y - lower) - np.log(upper - y),
        )

    return oracle


def _truncated(lower, upper):
    return lambda loc, scale: stats.truncnorm(
        (lower - loc) / scale, (upper - loc) / scale, loc, scale
    )


CASES = [
    Case(
        "beta",
        Beta,
        _concentrations,
        lambda concentration1, concentration0: stats.beta(concentration1, concentration0),
    ),
    Case(
        "beta-moved",
        Beta,
        _concentrations,
        lambda concentration1, concentration0: stats.beta(concentration1, concentration0, -2, 5),
        {"lower": -2.0, "upper": 3.0},
    ),
    Case("logit-normal", LogitNormal, _normals, _logit_normal(0.0, 1.0)),
    Case(
        "logit-normal-moved",
        LogitNormal,
        _normals,
        _logit_normal(-2.0, 3.0),
        {"lower": -2.0, "upper": 3.0},
    ),
    Case("positive-normal", TruncatedNormal, _normals, _truncated(0.0, np.inf)),
    Case(
        "truncated-normal",
        TruncatedNormal,
        _normals,
        _truncated(-1.0, 1.5),
        {"lower": -1.0, "upper": 1.5},
    ),
    Case(
        "negative-normal",
        TruncatedNormal,
        _normals,
        _truncated(-np.inf, 0.5),
        {"lower": -np.inf, "upper": 0.5},
    ),
]
BY_NAME = {case.name: case for case in CASES}
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
# What bounds cannot change is tested once for each family: compilations are dear.
DISTINCT = [BY_NAME[name] for name in ("beta", "logit-normal-moved", "truncated-normal")]
every_family = pytest.mark.parametrize("case", DISTINCT, ids=lambda case: case.name)
NAMES = ("log_density", "cdf", "survival", "log_cdf", "log_survival", "quantile")


@every_case
def test_values(case):
    # Next to a bound that is not zero, a target's last place is worth its distance from the bound:
    # 1e-6 of the distribution lies within 1e-3 to 1e-12 of the width.
    moved = "lower" in case.constants
    # SciPy's truncated normal has the digits that the difference of two normal tails leaves it.
    loose = {"any": 1e-9, "cdf": 1e-7, "survival": 1e-7, "log_cdf": 1e-7, "log_survival": 1e-7}
    check_values(case, np.float64, loose if moved else {"any": 3e-10}, NAMES)
    if not moved:
        check_values(case, np.float32, {"any": 3e-3, "quantile": 3e-4}, ("quantile",))


@every_family
def test_gradients(case):
    check_gradients(case, rtol=1e-5)


@every_case
def test_integrates_to_one(case):
    check_normalization(case)


@every_family
def test_samples(case):
    check_samples(case)


@every_family
def test_mixtures(case):
    check_mixture(case)


def test_outside_the_support():
    check_outside(BY_NAME["beta"], [-np.inf, -1e-9, 1.0000001, np.inf], 0.5)
    check_outside(BY_NAME["logit-normal-moved"], [-np.inf, -2.1, 3.1, np.inf], 0.5)
    check_outside(BY_NAME["truncated-normal"], [-np.inf, -1.1, 1.6, np.inf], 0.5)
    check_outside(BY_NAME["negative-normal"], [0.6, np.inf], 0.0)


@pytest.mark.parametrize(("shape", "sign"), [(0.5, np.inf), (1.0, 0.0), (2.0, -np.inf)])
@pytest.mark.parametrize("end", ["lower", "upper"])
def test_the_limits_of_beta(shape, sign, end):
    def value(own, other, y):
        a, b = (own, other) if end == "lower" else (other, own)
        member = Beta(concentration1=a, concentration0=b, lower=-1.0, upper=3.0)
        return member.marginal_log_prob(y)[0]

    y = jnp.array([-1.0 if end == "lower" else 3.0])
    arguments = (jnp.array([shape]), jnp.array([2.5]), y)
    limit = np.log(2.5 / 4.0) if sign == 0 else sign
    np.testing.assert_allclose(value(*arguments), limit, rtol=1e-15)
    gradients = jax.grad(value, argnums=(0, 1, 2))(*arguments)
    assert all(np.isfinite(g[0]) for g in gradients)
    assert (gradients[1][0] != 0) == (sign == 0)


def test_what_data_on_the_bounds_do():
    y = jnp.array([[0.0], [1.0]])
    logit_normal = LogitNormal(loc=jnp.zeros(1), scale=jnp.ones(1))
    np.testing.assert_array_equal(logit_normal.marginal_log_prob(y), -np.inf)
    truncated = TruncatedNormal(loc=jnp.full(1, 0.3), scale=jnp.full(1, 0.5), lower=0.0, upper=1.0)
    expected = stats.truncnorm(-0.6, 1.4, 0.3, 0.5).logpdf(np.array([[0.0], [1.0]]))
    np.testing.assert_allclose(truncated.marginal_log_prob(y), expected, rtol=1e-13)
    slopes = jax.grad(lambda y: jnp.sum(truncated.marginal_log_prob(y)))(y)
    np.testing.assert_allclose(slopes[:, 0], [0.3 / 0.25, -0.7 / 0.25], rtol=1e-12)
    assert bool(jnp.all(truncated.in_support(y)))


FAR = [(-40.0, 1.0, 1.0), (-3000.0, 2.0, 0.01), (0.2, 1e-3, 1.0), (0.5, 1e3, 1.0), (1e4, 1.0, 1.0)]


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-11), (np.float32, 3e-5)])
def test_truncated_normal_far_in_the_tail(dtype, rtol):
    # Between 0 and 1, with the normal up to 1500 scales away, and with next to no slope at all.
    exact, y = [], 0.25
    for loc, scale, _ in FAR:
        with mpmath.workdps(60):
            loc, scale = (mpmath.mpf(float(dtype(x))) for x in (loc, scale))
            mode = min(max(loc, 0), 1)

            def density(t, loc=loc, scale=scale, mode=mode):
                return mpmath.exp(-((t - loc) ** 2 - (mode - loc) ** 2) / (2 * scale**2))

            cuts = [mpmath.mpf(k) / 4096 for k in range(33)]
            cuts = sorted({*cuts, *(1 - c for c in cuts), 0.15, 0.19, 0.2, 0.21, 0.25, 0.5, 0.75})
            mass = mpmath.quad(density, cuts)
            below = mpmath.quad(density, [c for c in cuts if c <= y])
            mean = mpmath.quad(lambda t, density=density: t * density(t), cuts) / mass
            variance = (
                mpmath.quad(
                    lambda t, mean=mean, density=density: (t - mean) ** 2 * density(t), cuts
                )
                / mass
            )
            log_density = mpmath.log(density(mpmath.mpf(y)) / mass)
            log_survival = mpmath.log((mass - below) / mass) if below < mass else -mpmath.inf
            exact.append([float(v) for v in (log_density, mean, variance, log_survival)])
    loc, scale, _ = (jnp.asarray(column, dtype)[:, None] for column in np.array(FAR).T)
    member = TruncatedNormal(loc=loc, scale=scale, lower=0.0, upper=1.0)
    point = jnp.full((1,), y, dtype)
    found = [member.marginal_log_prob(point), member.mean(), member.variance()]
    # The step from loc to the target is rounded: worth an ulp of loc times the slope, which is the
    # log-density itself, more or less.
    for value, expected in zip(found, np.array(exact).T[:3], strict=True):
        np.testing.assert_allclose(value[:, 0], expected, rtol=rtol, atol=1e-3 * rtol)
    log_survival = np.array(exact)[:, 3]
    near = log_survival > -1e3  # beyond, 60 digits of the difference are not enough
    np.testing.assert_allclose(
        member.log_survival(point)[near, 0], log_survival[near], rtol=rtol, atol=rtol
    )


def test_truncated_normal_quantiles_far_in_the_tail():
    loc, scale, _ = (jnp.asarray(column)[:, None] for column in np.array(FAR).T)
    member = TruncatedNormal(loc=loc, scale=scale, lower=0.0, upper=1.0)
    p = jnp.array([1e-6, 1e-3, 0.3, 0.5, 0.8, 0.999, 1 - 1e-6])
    y = member.quantile(p)
    assert bool(jnp.all((y >= 0) & (y <= 1)))
    # The mean of 1e4 lies so far above 1 that y = 1 - 1e-4 has but 12 digits of its distance.
    np.testing.assert_allclose(member.cdf(y), jnp.broadcast_to(p, y.shape), rtol=1e-7)
    np.testing.assert_array_equal(member.quantile(jnp.array([0.0, 1.0])), [[0.0, 1.0]] * 5)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 3e-12), (np.float32, 1e-4)])
def test_incomplete_beta_of_extreme_shapes(dtype, rtol):
    # Absolute accuracy beside a shape below one; in float32 shapes end at 1e4, where an ulp of x is
    # worth 1e-5 of a tail.
    rng = np.random.default_rng(20)
    end = 6 if dtype == np.float64 else 4
    a, b = (10 ** rng.uniform(-2, end, (2, 1000))).astype(dtype)
    p = np.where(
        rng.random(1000) < 0.5, 10 ** rng.uniform(-6, -0.3, 1000), rng.uniform(0.5, 1, 1000)
    )
    p = p.astype(dtype)
    a64, b64, p64 = (v.astype(float) for v in (a, b, p))
    x, y = special.betaincinv(a64, b64, p64), special.betainccinv(b64, a64, p64)
    x, y = np.where(x < 0.5, x, 1 - y), np.where(x < 0.5, 1 - x, y)
    usable = np.minimum(x, y) > 1e-30
    a, b, p, a64, b64, p64, x, y = (v[usable] for v in (a, b, p, a64, b64, p64, x, y))
    below, above = jax.jit(beta_functions.tails)(*(jnp.asarray(v, dtype) for v in (x, y, a, b)))
    np.testing.assert_allclose(below, p64, rtol=10 * rtol)
    np.testing.assert_allclose(above, 1 - p64, rtol=10 * rtol, atol=1e-9)
    found, rest = jax.jit(beta_functions.quantile)(*(jnp.asarray(v) for v in (p, a, b)))
    np.testing.assert_allclose(found, x, rtol=10 * rtol)
    np.testing.assert_allclose(rest, y, rtol=10 * rtol)


def test_incomplete_beta_has_derivatives_in_the_shapes():
    points = [(18.3, 27.1, 0.4), (0.3, 200.0, 1e-3), (0.2, 0.3, 0.7), (3.0, 0.2, 0.99)]
    with mpmath.workdps(30):
        step, exact = mpmath.mpf("1e-10"), []
        for a, b, x in points:
            ends = [
                mpmath.betainc(a + i * step, b + j * step, 0, x, regularized=True)
                for i, j in ((1, 0), (-1, 0), (0, 1), (0, -1))
            ]
            exact.append([float((ends[i] - ends[i + 1]) / (2 * step)) for i in (0, 2)])
    a, b, x = (jnp.asarray(column) for column in np.array(points).T)
    slopes = jax.jit(
        jax.grad(lambda a, b: jnp.sum(beta_functions.tails(x, 1 - x, a, b)[0]), argnums=(0, 1))
    )(a, b)
    np.testing.assert_allclose(np.stack(slopes, -1), exact, rtol=1e-10)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-10), (np.float32, 1e-5)])
def test_beta_density_of_extreme_shapes(dtype, rtol):
    with mpmath.workdps(30):
        points, exact = [], []
        for a, b in ((1e-2, 1e-2), (1e-2, 1e4), (1e4, 3e4), (1e6, 1e6), (2.0, 1e6)):
            for z in (0.5, 0.9):
                x = special.betaincinv(a, b, z)
                a_, b_, x_ = (mpmath.mpf(float(dtype(v))) for v in (a, b, x))
                log_beta = mpmath.loggamma(a_) + mpmath.loggamma(b_) - mpmath.loggamma(a_ + b_)
                value = (a_ - 1) * mpmath.log(x_) + (b_ - 1) * mpmath.log(1 - x_) - log_beta
                points.append((a, b, x))
                exact.append(float(value))
    a, b, x = (jnp.asarray(column, dtype) for column in np.array(points).T)
    value = Beta(concentration1=a, concentration0=b).marginal_log_prob(x)
    np.testing.assert_allclose(value, exact, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-2.0, 3.0)])
@pytest.mark.parametrize(("family", "rtol"), [(Beta, 1e-9), (LogitNormal, 1e-3)])
def test_moments_are_recovered(family, rtol, bounds):
    rng = np.random.default_rng(21)
    lower, upper = bounds
    x = rng.uniform(0.05, 0.95, 40)
    variance = (upper - lower) ** 2 * x * (1 - x) * rng.uniform(0.01, 0.6, 40)
    case = Case("", family, None, None)
    check_moments(case, lower + (upper - lower) * x, variance, rtol, lower=lower, upper=upper)


def test_moments_of_the_truncated_normal_are_recovered_where_there_are_any():
    mean, variance = np.array([1.0, 3.0, 0.5, 2.0]), np.array([0.1, 1.0, 0.1, 2.0])
    case = BY_NAME["positive-normal"]
    check_moments(case, mean, variance, 2e-3)
    # A variance that no member has: the mean all the same.
    found = TruncatedNormal.from_moments(jnp.array([0.5]), jnp.array([0.2]), lower=0.0, upper=1.0)
    np.testing.assert_allclose(found.mean(), 0.5, rtol=1e-6)
    assert 1 / 13 < float(found.variance()[0]) < 1 / 12


@pytest.mark.parametrize("family", [Beta, LogitNormal, TruncatedNormal])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_moments_are_finite(family, dtype):
    mean, variance = np.meshgrid([1e-3, 0.5, 1 - 1e-3], [1e-6, 0.2, 10.0])
    mean, variance = (jnp.asarray(v.ravel(), dtype) for v in (mean, variance))
    found = family.from_moments(mean, variance, lower=0.0, upper=1.0)
    for leaf in jax.tree.leaves(found):
        assert leaf.dtype == dtype
        assert bool(jnp.all(jnp.isfinite(leaf)))


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-11), (np.float32, 2e-5)])
def test_logit_normal_moments(dtype, rtol):
    loc = np.array([0.0, 0.7, -3.0, 2.0, -8.0, 0.1], dtype)
    scale = np.array([1e-3, 0.5, 1.0, 1.3, 2.0, 30.0], dtype)
    x, w = np.polynomial.legendre.leggauss(4000)
    z, w = 10 * x, 10 * w * stats.norm.pdf(10 * x)
    y = special.expit(loc.astype(float)[:, None] + scale.astype(float)[:, None] * z)
    mean = np.sum(w * y, -1)
    variance = np.sum(w * (y - mean[:, None]) ** 2, -1)
    member = LogitNormal(loc=jnp.asarray(loc), scale=jnp.asarray(scale))
    np.testing.assert_allclose(member.mean(), mean, rtol=rtol)
    np.testing.assert_allclose(member.variance(), variance, rtol=10 * rtol)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), index=st.sampled_from(range(len(DISTINCT))))
def test_quantile_inverts_the_exact_cdf_of_random_mixtures(seed, index):
    # Fifty mixtures of two dimensions an example: a thousand in all.
    mixture, weights, oracle = mixture_of(DISTINCT[index], seed, rows=50)
    p = np.random.default_rng(seed).uniform(1e-4, 1 - 1e-4, (50, 2))
    root = np.asarray(jaxmdn.quantile(mixture, jnp.asarray(p)))
    reached = np.sum(weights[..., None] * oracle.cdf(root[:, None]), axis=1)
    np.testing.assert_allclose(reached, p, rtol=1e-8, atol=1e-9)


def test_different_bounds_do_not_join(user_errors):
    parts = [
        jaxmdn.Mixture(
            logits=jnp.zeros(1),
            components=Beta(
                concentration1=jnp.ones((1, 1)), concentration0=jnp.ones((1, 1)), upper=upper
            ),
        )
        for upper in (1.0, 2.0)
    ]
    with pytest.raises(ValueError, match=r"equal bounds, got \[0, 1\] and \[0, 2\]"):
        jaxmdn.merge(parts)


@pytest.mark.parametrize("family", [Beta, LogitNormal, TruncatedNormal])
def test_bounds_are_checked(user_errors, family):
    half = jnp.full(1, 0.5)
    with pytest.raises(ValueError, match=r"lower must be below upper, got 2\.0 and 1\.0"):
        family.from_moments(half, half, lower=2.0, upper=1.0)
    with pytest.raises(TypeError, match="lower must be a Python number"):
        family.from_moments(half, half, lower=jnp.zeros(()), upper=1.0)
    if family is not TruncatedNormal:
        with pytest.raises(ValueError, match="both bounds must be finite"):
            family.from_moments(half, half, lower=0.0, upper=math.inf)


def test_affine_leaves_bounded_families_alone():
    for case in DISTINCT:
        family = case.make(case.parameters(0, (2, 1)))
        assert family.closed_under == "none"
        assert family.affine(jnp.zeros(1), jnp.ones(1)) is family
