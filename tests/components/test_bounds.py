"""At and beyond the bounds of families with bounds, far out, and at extreme moments."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from cases import BY_NAME
from contract import DTYPES, ROWS, run
from oracle_continuous import gauss
from scipy import stats

import jaxmdn
from jaxmdn.components import (
    AsymmetricLaplace,
    Beta,
    DiscretizedLogistic,
    LogitNormal,
    TruncatedNormal,
)

of_dtype = pytest.mark.parametrize("dtype", DTYPES)


def rows(*values):
    return [np.resize(np.asarray(v, float), (ROWS, 1)) for v in values]


LIMITS = [
    ("gamma", "concentration", {"rate": 2.0}, 0.0, np.log(2.0)),
    ("weibull", "concentration", {"scale": 2.0}, 0.0, -np.log(2.0)),
    ("beta-moved", "concentration1", {"concentration0": 2.5}, -2.0, np.log(2.5 / 5)),
    ("beta-moved", "concentration0", {"concentration1": 2.5}, 3.0, np.log(2.5 / 5)),
]


@pytest.mark.parametrize(("name", "shape", "other", "bound", "limit"), LIMITS)
def test_the_limit_at_a_bound(name, shape, other, bound, limit):
    """Infinite for a shape below one, minus infinite above it, without slopes; else finite."""
    (y,) = rows(bound)
    order = list(BY_NAME[name].draw)
    for value, sign in ((0.5, np.inf), (1.0, 0.0), (2.0, -np.inf)):
        given = {shape: value, **other}
        parameters = dict(zip(order, rows(*(given[x] for x in order)), strict=True))
        values, slopes, *_ = run(BY_NAME[name], parameters, y)
        expected = limit if sign == 0 else sign
        np.testing.assert_allclose(values["log_prob"], expected, rtol=1e-15)
        for by_output in slopes.values():
            assert np.all(np.isfinite(by_output["log_prob"]))
        assert np.all((slopes[next(iter(other))]["log_prob"] != 0) == (sign == 0))


def test_what_data_on_the_bounds_do():
    (zero, half), (y,) = rows(0.0, 0.5), rows([-2.0, 3.0])
    for name, bounds in (("log-normal", rows(0.0)[0]), ("logit-normal", y)):
        log_prob = run(BY_NAME[name], {"loc": zero, "scale": zero + 1}, bounds)[0]["log_prob"]
        np.testing.assert_array_equal(log_prob, -np.inf)
    (y,) = rows([-1.0, 1.5])
    loc, scale = 0.25 + zero, 1.25 * (half + half)
    values, slopes, beside, *_ = run(BY_NAME["truncated-normal"], {"loc": loc, "scale": scale}, y)
    law = stats.truncnorm(-1.25 / 1.25, 1.25 / 1.25, 0.25, 1.25)
    np.testing.assert_allclose(values["log_prob"], law.logpdf(y), rtol=1e-13)
    expected = -(y - 0.25) / 1.25**2
    np.testing.assert_allclose(slopes["y"]["log_prob"], expected, rtol=1e-12)
    assert beside["inside"].all()


# The normal up to 1500 scales away from the interval, and with next to no slope at all; in shares
# of the interval, which is [-1, 1.5].
FAR = np.array([(-40.0, 1.0), (-3000.0, 2.0), (0.2, 1e-3), (0.5, 1e3), (1e4, 1.0)])


@of_dtype
def test_truncated_normal_far_in_the_tail(dtype):
    loc, scale = (v.astype(dtype) for v in (2.5 * FAR[:, 0] - 1, 2.5 * FAR[:, 1]))
    exact, y = [], dtype(-0.375)
    for a, b in zip(loc, scale, strict=True):
        with mpmath.workdps(60):
            a, b = mpmath.mpf(float(a)), mpmath.mpf(float(b))
            mode = min(max(a, mpmath.mpf(-1)), mpmath.mpf("1.5"))

            def density(t, a=a, b=b, mode=mode):
                return mpmath.exp(-((t - a) ** 2 - (mode - a) ** 2) / (2 * b**2))

            cuts = [mpmath.mpf(k) / 4096 for k in range(33)]
            cuts = {*cuts, *(1 - c for c in cuts), 0.15, 0.19, 0.2, 0.21, 0.25, 0.5, 0.75}
            cuts = sorted(mpmath.mpf("2.5") * c - 1 for c in cuts)
            mass = mpmath.quad(density, cuts)
            below = mpmath.quad(density, [c for c in cuts if c <= y])
            mean = mpmath.quad(lambda t, f=density: t * f(t), cuts) / mass
            variance = mpmath.quad(lambda t, f=density, m=mean: (t - m) ** 2 * f(t), cuts) / mass
            log_density = mpmath.log(density(mpmath.mpf(float(y))) / mass)
            log_survival = mpmath.log((mass - below) / mass) if below < mass else -mpmath.inf
            exact.append([float(v) for v in (log_density, mean, variance, log_survival)])
    exact = np.resize(exact, (ROWS, 4))
    parameters = {"loc": np.resize(loc, (ROWS, 1)), "scale": np.resize(scale, (ROWS, 1))}
    values = run(BY_NAME["truncated-normal"], parameters, np.full((ROWS, 1), y))[0]
    rtol = 1e-11 if dtype == np.float64 else 3e-5
    # The step from loc to the target is rounded: worth an ulp of loc times the slope, which is the
    # log-density itself, more or less.
    for i, name in enumerate(("log_prob", "mean", "variance")):
        found = values[name][:, 0]
        np.testing.assert_allclose(found, exact[:, i], rtol=rtol, atol=1e-3 * rtol, err_msg=name)
    near = exact[:, 3] > -1e3  # beyond, 60 digits of the difference are not enough
    found = values["log_survival"][near, 0]
    np.testing.assert_allclose(found, exact[near, 3], rtol=rtol, atol=rtol)


def test_truncated_normal_quantiles_far_in_the_tail():
    p = np.array([1e-6, 1e-3, 0.3, 0.5, 0.8, 0.999, 1 - 1e-6, 0.0, 1.0])
    p, which = (v.ravel() for v in np.meshgrid(p, range(5)))
    p, loc, scale = rows(p, 2.5 * FAR[which, 0] - 1, 2.5 * FAR[which, 1])
    case, parameters = BY_NAME["truncated-normal"], {"loc": loc, "scale": scale}
    y = run(case, parameters, 0 * p, p)[0]["quantile"]
    assert np.all((y >= -1) & (y <= 1.5))
    # The mean of 1e4 lies so far above 1 that y = 1 - 1e-4 has but 12 digits of its distance.
    np.testing.assert_allclose(run(case, parameters, y)[0]["cdf"], p, rtol=1e-7)
    np.testing.assert_array_equal(y[p == 0], -1)
    np.testing.assert_array_equal(y[p == 1], 1.5)


@of_dtype
def test_logit_normal_moments(dtype):
    loc, scale = rows([0.0, 0.7, -3.0, 2.0, -8.0, 0.1], [1e-3, 0.5, 1.0, 1.3, 2.0, 30.0])
    case = BY_NAME["logit-normal"]
    parameters = {"loc": loc.astype(dtype), "scale": scale.astype(dtype)}
    values = run(case, parameters, np.zeros((ROWS, 1), dtype))[0]
    x, w = gauss(np.linspace(-10, 10, 401), 10)
    w = w * stats.norm.pdf(x)
    y = 5 / (1 + np.exp(-parameters["loc"].astype(float) - parameters["scale"] * x))
    mean = np.sum(w * y, -1, keepdims=True)
    variance = np.sum(w * (y - mean) ** 2, -1, keepdims=True)
    rtol = 1e-11 if dtype == np.float64 else 2e-5
    np.testing.assert_allclose(values["mean"] + dtype(2), mean, rtol=rtol, atol=2 * rtol)
    np.testing.assert_allclose(values["variance"], variance, rtol=10 * rtol)


def test_weibull_variance_of_large_and_small_shape():
    # 1 + 1 / k and 1 + 2 / k differ by nothing in float32 for k = 1e4.
    shapes = np.array([0.3, 0.9, 1.7, 3.0, 40.0, 1e4])
    with mpmath.workdps(40):
        exact = [
            float(mpmath.gamma(1 + 2 / mpmath.mpf(k)) - mpmath.gamma(1 + 1 / mpmath.mpf(k)) ** 2)
            for k in shapes
        ]
    (exact,) = rows(exact)
    for dtype, rtol in ((np.float64, 1e-12), (np.float32, 2e-5)):
        # 0.3 and the like are rounded to float32 first: worth 1e-6 of the variance.
        concentration, one = (v.astype(dtype) for v in rows(shapes, 1.0))
        parameters = {"concentration": concentration, "scale": one}
        variance = run(BY_NAME["weibull"], parameters, one)[0]["variance"]
        np.testing.assert_allclose(variance, exact, rtol=rtol)


def test_weibull_far_out_stays_finite():
    concentration, scale, y = rows(50.0, 1.0, [1e30, 2.0])
    values, slopes, *_ = run(
        BY_NAME["weibull"], {"concentration": concentration, "scale": scale}, y
    )
    value, slope = values["log_prob"], slopes["y"]["log_prob"]
    assert np.all(np.isfinite(value))
    assert np.all(np.isfinite(slope))
    assert value[0, 0] < -1e100
    np.testing.assert_allclose(value[1, 0], stats.weibull_min(50.0).logpdf(2.0), rtol=1e-13)


@of_dtype
@pytest.mark.parametrize("name", ["log-normal", "gamma", "weibull"])
def test_extreme_moments_of_positive_families(name, dtype):
    mean, ratio = (v.ravel() for v in np.meshgrid([1e-6, 1, 1e6], [1e-3, 3]))
    case = BY_NAME[name]
    parameters, (y,) = case.parameters(1, dtype=dtype), rows(1.0)
    leaves, found, _ = run(case, parameters, y.astype(dtype), moments=(mean, (ratio * mean) ** 2))[
        2
    ]["member"]
    for leaf in leaves:
        assert leaf.dtype == dtype
        assert np.all(np.isfinite(leaf))
    np.testing.assert_allclose(found, np.resize(mean, (ROWS, 1)), rtol=1e-3)


@of_dtype
@pytest.mark.parametrize("family", [Beta, LogitNormal, TruncatedNormal])
def test_extreme_moments_between_bounds_are_finite(family, dtype):
    mean, variance = np.meshgrid([1e-3, 0.5, 1 - 1e-3], [1e-6, 0.2, 10.0])
    mean, variance = (jnp.asarray(v.ravel(), dtype) for v in (mean, variance))
    found = jax.jit(lambda m, v: family.from_moments(m, v, lower=0.0, upper=1.0))(mean, variance)
    for leaf in jax.tree.leaves(found):
        assert leaf.dtype == dtype
        assert np.all(np.isfinite(np.asarray(leaf)))


def test_moments_of_the_truncated_normal_are_recovered_where_there_are_any():
    @jax.jit
    def moments(mean, variance):
        member = TruncatedNormal.from_moments(mean, variance)
        # A variance that no member has: the mean all the same.
        wide = TruncatedNormal.from_moments(mean[:1], variance[:1] + 0.1, lower=0.0, upper=1.0)
        return [(m.mean(), m.variance()) for m in (member, wide)]

    mean, variance = np.array([0.5, 1.0, 3.0, 2.0]), np.array([0.1, 0.1, 1.0, 2.0])
    found = moments(jnp.asarray(mean), jnp.asarray(variance))
    np.testing.assert_allclose(found[0], [mean, variance], rtol=2e-3)
    np.testing.assert_allclose(found[1][0], 0.5, rtol=1e-6)
    assert 1 / 13 < float(found[1][1][0]) < 1 / 12


def test_the_asymmetry_is_checked():
    with pytest.raises(ValueError, match="asymmetry must be positive, got -1"):
        AsymmetricLaplace.from_moments(jnp.zeros(1), jnp.ones(1), asymmetry=-1.0)


def test_different_bounds_do_not_join(user_errors):
    """Nor do levels: their probabilities would be those of the first one's."""
    one = jnp.ones((1, 1))
    beta = partial(Beta, concentration1=one, concentration0=one)
    rounded = partial(DiscretizedLogistic, loc=one, scale=one)
    for make in (beta, rounded):
        parts = [
            jaxmdn.Mixture(logits=jnp.zeros(1), components=make(upper=upper))
            for upper in (1.0, 2.0)
        ]
        with pytest.raises(ValueError, match=r"need equal upper, got 1.0 and 2.0; make them"):
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
