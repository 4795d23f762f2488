"""What the families of the real line do at their centres, far out and at their limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BY_NAME
from contract import DTYPES, ROWS, run
from oracles import mp
from scipy import integrate, special, stats

import jaxmdn
from jaxmdn.components import Laplace, Logistic, StudentT

STUDENT = BY_NAME["student-t"]
of_dtype = pytest.mark.parametrize("dtype", DTYPES)


def standard(df, dtype=np.float64):
    df = np.resize(df, (ROWS, 1)).astype(dtype)
    return {"loc": np.zeros_like(df), "scale": np.ones_like(df), "df": df}


def exact_log_density(z, df):
    z, df = mp.mpf(z), mp.mpf(df)
    norm = mp.loggamma((df + 1) / 2) - mp.loggamma(df / 2) - mp.log(df * mp.pi) / 2
    return norm - (df + 1) / 2 * mp.log1p(z * z / df)


def exact_tail(z, df):
    """``P(T > z)``: the incomplete beta function, or a quadrature where its series is slow."""
    if z < 0:
        return 1 - exact_tail(-z, df)
    z, df = mp.mpf(z), mp.mpf(df)
    if df < 1000:
        return mp.betainc(df / 2, 0.5, 0, df / (df + z * z), regularized=True) / 2
    step = 1 / (z + 1)
    points = [z + i * step for i in (0, 1, 2, 4, 7, 11, 16, 24, 36, 60)]
    return mp.quad(lambda t: mp.exp(exact_log_density(t, df)), points)


STUDENT_CASES = np.array(
    [
        (z, df)
        for df in (0.1, 0.3, 1.0, 2.0, 4.0, 7.3, 19.9, 20.1, 30.0, 300.0, 1e6)
        for z in (-3.0, -0.4, 1e-8, 0.01, 1.0, 1.3, 1.5, 3.0, 15.0, 1e3, 1e10)
        if df < 1000 or z < 20
    ]
).T


@functools.cache
def student_oracle():
    """Log-density, its slope in ``df``; upper tail, its slope; those of its logarithm; hazard."""
    digits, mp.dps = mp.dps, 40
    rows = []
    for z, df in STUDENT_CASES.T:
        step = mp.mpf(df) * mp.mpf("1e-10")  # 40 digits leave 20 of a difference
        row = []
        for function in (exact_log_density, exact_tail):
            low, here, high = (function(z, mp.mpf(df) + i * step) for i in (-1, 0, 1))
            row += [here, (high - low) / (2 * step)]
        row += [mp.log(row[2]), row[3] / row[2], -mp.exp(row[0]) / row[2]]
        rows.append([float(x) for x in row])
    mp.dps = digits
    return np.array(rows).T


def in_two_runs(dtype, y, df, p=None):
    """Values and slopes of more rows than one run has."""
    p = np.full(len(y), 0.3) if p is None else p
    found = []
    for part in (slice(0, ROWS), slice(ROWS, None)):
        values, slopes, *_ = run(
            STUDENT, standard(df[part], dtype), y[part, None].astype(dtype), p[part, None]
        )
        keep = slice(0, len(y[part]))
        found.append(({k: v[keep, 0] for k, v in values.items()}, slopes, keep))
    values = {k: np.concatenate([part[0][k] for part in found]) for k in found[0][0]}
    return values, lambda x, k: np.concatenate([part[1][x][k][part[2], 0] for part in found])


@of_dtype
def test_student_and_its_derivatives_in_df_against_mpmath(dtype):
    z, df = STUDENT_CASES
    values, slope = in_two_runs(dtype, z, df)
    log_prob, in_df, tail, tail_in_df, log_tail, log_tail_in_df, hazard = student_oracle()
    if dtype == np.float32:  # the oracle's z and df are not rounded: 0.1 is, by 1e-8
        # Errors of the exponent (log p up to 88), which exp makes relative ones of p.
        rtol, floor = 2e-5, np.finfo(np.float32).tiny
    else:
        rtol, floor = 5e-12, 1e-300
    # Next to the median the derivative of the tail is a difference of numbers of order df^-2 z.
    small = np.abs(tail_in_df) < 1e-20
    for found, exact, free in (
        (values["log_prob"], log_prob, False),
        (slope("df", "log_prob"), in_df, False),
        (values["survival"], tail, False),
        (slope("df", "survival"), tail_in_df, small),
        (values["log_survival"], log_tail, False),
        (slope("df", "log_survival"), log_tail_in_df, small),
        (slope("y", "log_survival"), hazard, False),
    ):
        close = np.abs(found.astype(float) - exact) <= rtol * np.abs(exact) + floor
        assert (close | free).all(), np.argwhere(~(close | free))


def test_student_quantile_derivative_is_that_of_the_implicit_function():
    z, df = STUDENT_CASES
    keep = (np.abs(z) >= 0.01) & (np.abs(z) < 5)
    log_prob, _, tail, tail_in_df, *_ = student_oracle()
    values, slope = in_two_runs(np.float64, z, df, 1 - tail)
    density = np.exp(log_prob)[keep]
    np.testing.assert_allclose(values["quantile"][keep], z[keep], rtol=1e-12)
    np.testing.assert_allclose(slope("df", "quantile")[keep], tail_in_df[keep] / density, rtol=1e-9)
    np.testing.assert_allclose(slope("p", "quantile")[keep], 1 / density, rtol=1e-10)


@of_dtype
@pytest.mark.parametrize("name", ["laplace", "logistic", "student-t"])
def test_component_quantiles(name, dtype):
    levels = np.array([1e-6, 1e-3, 0.2, 0.3, 0.499, 0.5, 0.7, 0.999, 1 - 1e-6])
    df = np.array([0.3, 1.0, 1.5, 2.0, 4.0, 30.0, 1e6]) if name == "student-t" else [1.0]
    p, df = (np.resize(v.ravel(), (ROWS, 1)) for v in np.meshgrid(levels, df))
    parameters = {**standard(df, dtype), "scale": np.full((ROWS, 1), 1.5, dtype)}
    if name != "student-t":
        del parameters["df"]
    p = p.astype(dtype)
    found = run(BY_NAME[name], parameters, np.zeros((ROWS, 1), dtype), p)[0]["quantile"]
    exact = {k: v.astype(float) for k, v in parameters.items()}
    law = {"laplace": stats.laplace, "logistic": stats.logistic, "student-t": stats.t}[name]
    exact = law(**exact).ppf(p.astype(float))
    # A relative error of eps |log p| in the probability is one of that over df in the quantile.
    # SciPy's own ppf for a million degrees of freedom is worth 1e-10.
    rtol = 1e-5 if dtype == np.float32 else 2e-10
    np.testing.assert_allclose(found, exact, rtol=rtol, atol=1e-15)
    assert np.all(found[p == 0.5] == 0)


def test_derivatives_at_the_centre():
    """Where ``abs`` has no slope, the distribution function still has: the density."""
    for name, exact in (("laplace", 0.5), ("logistic", 0.25), ("student-t", stats.t(3.0).pdf(0.0))):
        parameters = standard(3.0)
        if name != "student-t":
            del parameters["df"]
        in_y = run(BY_NAME[name], parameters, np.zeros((ROWS, 1)))[1]["y"]
        slopes = [in_y[k][0, 0] for k in ("cdf", "survival", "log_cdf", "log_prob")]
        np.testing.assert_allclose(slopes, [exact, -exact, 2 * exact, 0.0], rtol=1e-14, atol=1e-15)


@of_dtype
@pytest.mark.parametrize("name", ["laplace", "logistic", "student-t"])
def test_far_tails(name, dtype):
    """1e10 scales away and more: finite log-densities and log-tails, and their slopes."""
    y = np.resize([-1e10, 1e10], (ROWS, 1)).astype(dtype)
    scale = np.repeat([1e-3, 1.0], ROWS // 2)[:, None]
    parameters = {**standard(0.5, dtype), "scale": scale.astype(dtype)}
    if name != "student-t":
        del parameters["df"]
    values, slopes, *_ = run(BY_NAME[name], parameters, y)
    far, side = 1e10 / scale, np.sign(y)
    if name == "student-t":
        both = [[float(f(x, 0.5)) for x in (1e13, 1e10)] for f in (exact_log_density, exact_tail)]
        log_prob, tail = (np.repeat(v, ROWS // 2)[:, None] for v in (both[0], np.log(both[1])))
        expected = log_prob - np.log(scale), tail, -1.5e-10 * side, -0.5e-10 * side
    else:
        log_prob = -far - np.log(scale) - (np.log(2.0) if name == "laplace" else 0.0)
        tail = -far - (np.log(2.0) if name == "laplace" else 0.0)
        expected = log_prob, tail, -side / scale, -side / scale
    found = [values["log_prob"], np.minimum(values["log_cdf"], values["log_survival"])]
    found += [slopes["y"]["log_prob"]]
    found += [np.where(side < 0, slopes["y"]["log_cdf"], slopes["y"]["log_survival"])]
    rtol = 1e-6 if dtype == np.float32 else 1e-10
    for value, exact, room in zip(found, expected, (rtol, rtol, 1e-5, 1e-5), strict=True):
        np.testing.assert_allclose(value, exact, rtol=room)


def test_student_at_its_limits():
    y = np.resize([-3.0, 0.2, 1.0, 8.0, 1e20, np.inf, -np.inf, 0.0], (ROWS, 1)).astype(np.float32)
    values = run(STUDENT, standard(np.inf, np.float32), y)[0]
    laws = {"log_prob": stats.norm.logpdf, "cdf": stats.norm.cdf, "survival": stats.norm.sf}
    for name, law in (laws | {"log_survival": stats.norm.logsf}).items():
        with np.errstate(over="ignore"):  # 1e40 / 2 is beyond float32
            expected = law(y.astype(float)).astype(np.float32)
        np.testing.assert_allclose(values[name], expected, rtol=1e-5, atol=1e-30, err_msg=name)
    cauchy = {k: v[:7, 0] for k, v in run(STUDENT, standard(1.0, np.float32), y)[0].items()}
    # z^2 overflows, the density does not.
    np.testing.assert_allclose(cauchy["log_prob"][4], -np.log(np.pi) - 2 * np.log(1e20), rtol=1e-6)
    np.testing.assert_allclose(cauchy["survival"][4], 1e-20 / np.pi, rtol=1e-5)
    np.testing.assert_array_equal(cauchy["survival"][5:], [0.0, 1.0])
    np.testing.assert_array_equal(cauchy["log_cdf"][5:], [0.0, -np.inf])
    np.testing.assert_array_equal(cauchy["log_prob"][5:], -np.inf)
    for bad in (-1.0, 0.0, np.nan):
        wrong = run(STUDENT, standard(bad, np.float32), y[:4])[0]
        for name in ("log_prob", "cdf", "log_cdf"):
            assert not np.isfinite(wrong[name]).any(), (bad, name)
    df = np.array([0.5, 1.0, 1.5, 2.0, 4.0])
    few = {"loc": np.ones(1), "scale": np.full(1, 2.0), "df": df}
    values = run(STUDENT, {k: np.resize(v, (ROWS, 1)) for k, v in few.items()}, y.astype(float))[0]
    np.testing.assert_array_equal(values["mean"][:5, 0], [np.nan, np.nan, 1, 1, 1])
    np.testing.assert_allclose(values["variance"][:5, 0], [np.nan, np.nan, np.inf, np.inf, 8.0])


def test_a_component_without_moments_counts_for_nothing_where_its_weight_is_zero():
    family = StudentT(
        loc=jnp.ones((5, 1)),
        scale=jnp.full((5, 1), 2.0),
        df=jnp.asarray([[0.5], [1.0], [1.5], [2.0], [4.0]]),
    )
    mixture = jaxmdn.Mixture(logits=jnp.asarray([-jnp.inf] * 4 + [0.0]), components=family)
    found = jax.jit(lambda m: (jaxmdn.mean(m), jaxmdn.variance(m), jaxmdn.covariance(m)[0]))(
        mixture
    )
    np.testing.assert_allclose(np.ravel(found), [1.0, 8.0, 8.0])


def test_student_samples_of_extreme_degrees_of_freedom():
    df = jnp.asarray([[0.3, 1.0, 1e6, np.inf]])
    family = StudentT(loc=jnp.zeros((1, 4)), scale=jnp.ones((1, 4)), df=df)
    draws = jax.jit(lambda family: family.sample(jax.random.key(1), (4000,)))(family)
    for d, law in enumerate((stats.t(0.3), stats.t(1.0), stats.norm, stats.norm)):
        assert stats.kstest(np.asarray(draws)[:, 0, d], law.cdf).pvalue > 1e-3


def test_samples_are_differentiable_in_every_parameter():
    """``d E g(T) / d df`` for a bounded g, against quadrature; exact in loc and scale."""

    def g_mean(df):
        family = StudentT(loc=jnp.zeros((1, 1)), scale=jnp.ones((1, 1)), df=df[None, None])
        values = jnp.arctan(family.sample(jax.random.key(2), (40_000,)) ** 2)
        return jnp.mean(values), jnp.std(values)

    u = np.linspace(0.0, 30.0, 3001)  # t = sinh(u)
    t, df = np.sinh(u), 2.5
    weights = np.arctan(t**2) * stats.t(df).pdf(t) * np.cosh(u)
    score = special.digamma((df + 1) / 2) - special.digamma(df / 2) - 1 / df
    score = 0.5 * (score - np.log1p(t**2 / df) + (df + 1) * t**2 / (df * (df + t**2)))
    exact = 2 * integrate.simpson(weights, x=u)
    in_df = 2 * integrate.simpson(weights * score, x=u)
    (value, deviation), slope = jax.jit(lambda df: jax.jvp(g_mean, (df,), (jnp.ones_like(df),)))(
        jnp.asarray(df)
    )
    assert abs(value - exact) < 4 * deviation / 200
    np.testing.assert_allclose(slope[0], in_df, rtol=0.1)

    @jax.jit
    def slopes(loc, scale):
        found = []
        for family in (Laplace, Logistic, StudentT):
            shape = {"df": jnp.full((1, 1), 3.0)} if family is StudentT else {}

            def sample(loc, scale, family=family, shape=shape):
                return family(loc=loc, scale=scale, **shape).sample(jax.random.key(3), (9,))

            one, none = jnp.ones_like(loc), jnp.zeros_like(loc)
            found.append(jax.jvp(sample, (loc, scale), (one, none))[1])
            value, in_scale = jax.jvp(sample, (loc, scale), (none, one))
            found.append(in_scale / (value / scale))
        return found

    for ratio in slopes(jnp.zeros((1, 1)), jnp.full((1, 1), 2.0)):
        np.testing.assert_allclose(ratio, 1.0, rtol=1e-12)


def test_three_dimensions_with_shared_parameters():
    """Marginals and conditionals in any order; a parameter of size one stays as it is."""
    rng = np.random.default_rng(10)
    logits, y = rng.normal(size=(1, 3)), rng.normal(size=(5, 3))
    loc, scale, df = (
        2 * rng.normal(size=(5, 3, 3)),
        np.exp(rng.normal(size=(1, 1, 3))),
        np.full((5, 3, 1), 3.5),
    )
    family = StudentT(loc=jnp.asarray(loc), scale=jnp.asarray(scale), df=jnp.asarray(df))
    mixture = jaxmdn.Mixture(logits=jnp.asarray(logits), components=family)

    @jax.jit
    def functions(mixture, y):
        rest = jaxmdn.condition(mixture, (0, 2), y[:, (0, 2)])
        pair = jaxmdn.marginal(mixture, (2, 0))
        return jaxmdn.log_prob(pair, y[:, (2, 0)]), jaxmdn.log_prob(rest, y[:, (1,)])

    each = stats.t(df, loc, scale).logpdf(y[:, None])
    joint, given = (
        special.logsumexp(special.log_softmax(logits, -1) + np.sum(each[..., dims], -1), axis=-1)
        for dims in ((0, 1, 2), (0, 2))
    )
    pair, rest = functions(mixture, jnp.asarray(y))
    np.testing.assert_allclose(pair, given, rtol=1e-11)
    np.testing.assert_allclose(rest, joint - given, rtol=1e-9, atol=1e-10)
