"""Both sides of the distributions: against SciPy and mpmath, and what their derivatives cost."""

from functools import partial

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import special, stats

from jaxmdn.special import beta, circular, counts, gamma, sides, student

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def test_a_side_that_is_everything_leaves_nothing():
    def both(log):
        return sides.log_complete(jnp.array([True, True, True]), log)

    log = jnp.array([0.0, 1e-16, -1e-30])
    (below, above), slopes = jax.jvp(both, (log,), (jnp.ones(3),))
    np.testing.assert_array_equal(below, [0, 0, -1e-30])
    np.testing.assert_allclose(above, [-np.inf, -np.inf, np.log(1e-30)], rtol=1e-15)
    np.testing.assert_array_equal(slopes[0], 1)
    np.testing.assert_allclose(slopes[1], [0, 0, -1e30], rtol=1e-15)


def integrals(function, *arguments):
    """How many integrals a function takes: each is one loop over the nodes."""
    return str(jax.make_jaxpr(function)(*arguments)).count("= scan[")


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda x, a: gamma.tails(x, a), 1),
        (lambda x, a, b: beta.log_tails(x, 1 - x, a, b), 2),
        (student.tail, 1),
        (circular.survival, 1),
    ],
)
def test_a_derivative_that_nobody_asks_for_costs_no_integral(function, shapes):
    x, parameters = jnp.full(1, 0.3), [jnp.full(1, 2.5)] * shapes
    one = jnp.ones(1)

    def in_x(x, *parameters):
        return jax.jvp(lambda x: function(x, *parameters), (x,), (one,))

    def in_all(x, *parameters):
        return jax.jvp(function, (x, *parameters), (one,) * (1 + shapes))

    assert integrals(function, x, *parameters) == integrals(in_x, x, *parameters)
    assert integrals(in_all, x, *parameters) == integrals(in_x, x, *parameters)
    found = jax.jvp(in_x, (x, *parameters), (one,) * (1 + shapes))  # and derivatives of those
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@DTYPES
def test_poisson_is_the_limit_of_the_negative_binomial(dtype):
    # Exact sums of float64 SciPy; large counts at one standard deviation or ten.
    mean = np.array([0.0, 1e-20, 1e-3, 1.0, 30.0, 1e4, 1e6], dtype)
    y = np.floor(mean + np.array([0, 0, 1, 3, -20, 300, 4000])).astype(dtype)

    @jax.jit
    def run(y, mean):
        infinite = jnp.full_like(mean, jnp.inf)
        limit = [f(y, mean, infinite) for f in (counts.log_mass, counts.tails, counts.log_tails)]
        direct = [
            f(y, mean)
            for f in (counts.poisson_log_mass, counts.poisson_tails, counts.poisson_log_tails)
        ]
        slopes = jax.jvp(lambda m: counts.poisson_tails(y, m)[0], (mean,), (jnp.ones_like(mean),))[
            1
        ]
        return limit, direct, slopes

    limit, direct, slopes = run(jnp.asarray(y), jnp.asarray(mean))
    y, mean = y.astype(float), mean.astype(float)
    log_mass = stats.poisson.logpmf(y, mean)
    rtol = 40 * float(np.finfo(dtype).eps) * (1 + np.abs(log_mass))
    exact = [log_mass, special.pdtr(y, mean), special.gammainc(y + 1, mean)]
    with np.errstate(divide="ignore"):
        exact += [np.log(exact[1]), np.log(exact[2])]
    # SciPy's mass at a million is off by 1e-9.
    for found in (limit, direct):
        values = [found[0], *found[1], *found[2]]
        for value, expected in zip(values, exact, strict=True):
            value = np.asarray(value, np.float64)
            some = (np.abs(expected) > 1e-3) & np.isfinite(expected)
            gap, size = np.abs(value[some] - expected[some]), 1 + np.abs(expected[some])
            np.testing.assert_array_less(gap, (rtol[some] + 2e-9) * size)
            np.testing.assert_array_equal(np.isinf(value), np.isinf(expected))
    np.testing.assert_allclose(slopes, -np.exp(log_mass), rtol=np.max(rtol) + 2e-9)


@DTYPES
def test_student_from_few_degrees_of_freedom_to_none_too_many(dtype):
    z, df = (
        v.ravel() for v in np.meshgrid([-3.0, -0.7, 0.0, 0.5, 1.3, 4.0, 30.0], [0.3, 2, 40, 1e6])
    )
    z, df = np.append(z, [2.0, 5.0]).astype(dtype), np.append(df, [np.inf] * 2).astype(dtype)
    tail, log_tail = jax.jit(lambda z, df: (student.tail(z, df), student.log_tail(z, df)))(
        jnp.asarray(z), jnp.asarray(df)
    )
    z, df, tail, log_tail = (np.asarray(v, np.float64) for v in (z, df, tail, log_tail))

    def exact(z, df):
        if df > 1e5:  # SciPy and mpmath lose their digits or their patience
            z, df = mpmath.mpf(z), mpmath.mpf(min(df, 1e40))
            norm = (
                mpmath.loggamma((df + 1) / 2)
                - mpmath.loggamma(df / 2)
                - mpmath.log(df * mpmath.pi) / 2
            )

            def density(t):
                return mpmath.exp(norm - (df + 1) / 2 * mpmath.log1p(t * t / df))

            return float(mpmath.quad(density, mpmath.linspace(z, z + 12, 25)))
        return float(special.stdtr(df, -z))

    with mpmath.workdps(60):
        expected = np.array([exact(a, b) for a, b in zip(z, df, strict=True)])
    seen = expected > 1e-30
    room = 60 * float(np.finfo(dtype).eps) * (1 + np.abs(np.log(expected)))
    np.testing.assert_array_less((np.abs(tail / expected - 1) / room)[seen], 1)
    # Next to one the logarithm is the other tail, which the sum rounds.
    size = 1 + np.abs(np.log(expected))
    np.testing.assert_array_less((np.abs(log_tail - np.log(expected)) / room / size)[seen], 1)


@pytest.mark.parametrize("function", [partial(gamma.quantile), circular.quantile, student.quantile])
def test_quantiles_invert(function):
    p = jnp.asarray(np.array([1e-6, 0.01, 0.3, 0.5, 0.7, 0.999]))
    shape = jnp.full(6, 2.5)
    x = jax.jit(function)(p, shape)
    cdf = {
        "gamma": lambda x: special.gammainc(2.5, x),
        "circular": lambda x: stats.vonmises(2.5).cdf(x),
        "student": lambda x: special.stdtr(2.5, x),
    }[getattr(function, "func", function).__module__.rpartition(".")[2]]
    # SciPy's von Mises tail has absolute accuracy.
    np.testing.assert_allclose(cdf(np.asarray(x)), p, rtol=1e-12, atol=1e-15)
