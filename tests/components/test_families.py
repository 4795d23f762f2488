"""The families of the real line (Laplace, logistic, Student's t): against SciPy and mpmath."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from oracles import mp
from scipy import integrate, special, stats

import jaxmdn
from jaxmdn.components import Density, Laplace, Logistic, StudentT

FAMILIES = {"laplace": Laplace, "logistic": Logistic, "student": StudentT}
SCIPY = {"laplace": stats.laplace, "logistic": stats.logistic, "student": stats.t}
N, K, D = 5, 3, 2
LEVELS = np.array([1e-6, 1e-3, 0.2, 0.3, 0.499, 0.5, 0.7, 0.999, 1 - 1e-6])
every_family = pytest.mark.parametrize("name", FAMILIES)


def draw(name, rng, K=K, D=D, batch=(N,), shared=False):
    """Parameters of a mixture by NumPy; with ``shared``, in shapes that broadcast."""
    width, tied = (1, 1) if shared else (D, K)
    lead = (1,) if shared else batch
    parameters = {
        "loc": 2.0 * rng.normal(size=(*batch, K, D)),
        "scale": np.exp(0.5 * rng.normal(size=(*lead, tied, D))),
    }
    if name == "student":
        parameters["df"] = np.exp(rng.uniform(np.log(0.8), np.log(40.0), (*batch, K, width)))
    return rng.normal(size=(*lead, K)), parameters


def build(name, logits, parameters, dtype=np.float64):
    cast = {key: jnp.asarray(value, dtype) for key, value in parameters.items()}
    return jaxmdn.Mixture(logits=jnp.asarray(logits, dtype), components=FAMILIES[name](**cast))


def frozen(name, parameters):
    """SciPy's distribution of every component and dimension."""
    shape = {} if name != "student" else {"df": parameters["df"]}
    return SCIPY[name](loc=parameters["loc"], scale=parameters["scale"], **shape)


def average(logits, values):
    return np.sum(special.softmax(logits, axis=-1)[..., None] * values, axis=-2)


@jax.jit
def everything(mixture, y, p):
    family, inner = mixture.components, y[..., None, :]
    return {
        "log_prob": jaxmdn.log_prob(mixture, y),
        "cdf": jaxmdn.cdf(mixture, y),
        "survival": jaxmdn.survival(mixture, y),
        "log_cdf": jaxmdn.log_cdf(mixture, y),
        "log_survival": jaxmdn.log_survival(mixture, y),
        "mean": family.mean(),
        "variance": family.variance(),
        "covariance": family.covariance(),
        "quantile": family.quantile(p),
        "below": family.tail(inner, jnp.zeros(inner.shape, bool)),
        "above": family.tail(inner, jnp.ones(inner.shape, bool)),
    }


def expected(name, logits, parameters, y, p):
    family, inner = frozen(name, parameters), y[..., None, :]
    joint = special.log_softmax(logits, axis=-1) + np.sum(family.logpdf(inner), axis=-1)
    cdf, survival = average(logits, family.cdf(inner)), average(logits, family.sf(inner))
    variance = np.broadcast_to(family.var(), parameters["loc"].shape)
    if name == "student":
        df = np.broadcast_to(parameters["df"], variance.shape)
        variance = np.where(df > 1, variance, np.nan)
    mean = np.broadcast_to(family.mean(), variance.shape)
    mean = np.where(np.isnan(variance), np.nan, mean)  # SciPy has an infinite mean for df <= 1
    return {
        "log_prob": special.logsumexp(joint, axis=-1),
        "cdf": cdf,
        "survival": survival,
        "log_cdf": np.log(cdf),
        "log_survival": np.log(survival),
        "mean": mean,
        "variance": variance,
        "covariance": np.where(np.eye(D, dtype=bool), variance[..., None], 0.0),
        "quantile": family.ppf(p),
        "below": family.cdf(inner),
        "above": family.sf(inner),
    }


@every_family
@pytest.mark.parametrize("shared", [False, True])
def test_against_scipy(name, shared):
    rng = np.random.default_rng(3)
    logits, parameters = draw(name, rng, shared=shared)
    mixture = build(name, logits, parameters)
    assert mixture.batch_shape == (N,)
    assert mixture.event_dim == D
    y = 4.0 * rng.normal(size=(N, D))
    p = rng.uniform(1e-4, 1 - 1e-4, (N, K, D))
    exact = expected(name, logits, parameters, y, p)
    for dtype in (np.float64, np.float32):
        if dtype == np.float32:  # SciPy sees the rounded numbers
            rounded = {key: np.float64(np.float32(value)) for key, value in parameters.items()}
            y, p, weights = (np.float64(np.float32(x)) for x in (y, p, logits))
            exact = expected(name, weights, rounded, y, p)
        found = everything(
            build(name, logits, parameters, dtype), *jnp.asarray([y], dtype), jnp.asarray(p, dtype)
        )
        # float32: a few units of the last place, times the slope of the function: y - loc loses
        # one of |loc|, and few degrees of freedom take the quantile to a power of 1 / df.
        rtol = 1e-11 if dtype == np.float64 else 2e-5
        for key, value in found.items():
            assert value.dtype == dtype, key
            np.testing.assert_allclose(value, exact[key], rtol=rtol, atol=rtol, err_msg=key)


@every_family
def test_density_integrates_to_one(name):
    logits, parameters = draw(name, np.random.default_rng(4), D=1, batch=())
    log_prob = jax.jit(lambda y: jaxmdn.log_prob(build(name, logits, parameters), y))
    t = np.linspace(-60.0, 60.0, 60_001)  # y = sinh(t): 1e26 on both sides
    density = np.exp(log_prob(jnp.asarray(np.sinh(t)[:, None]))) * np.cosh(t)
    # The trapezoidal rule; Laplace's cusp costs a factor of the step squared.
    np.testing.assert_allclose(np.sum(density) * (t[1] - t[0]), 1.0, rtol=2e-6)


@every_family
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_component_quantiles(name, dtype):
    p = LEVELS.astype(dtype)
    df = np.array([0.3, 1.0, 1.5, 2.0, 4.0, 30.0, 1e6, np.inf]) if name == "student" else [1.0]
    parameters = {"loc": np.zeros((1, len(df))), "scale": np.full((1, len(df)), 1.5)}
    if name == "student":
        parameters["df"] = np.asarray(df)[None]
    family = build(name, [0.0], parameters, dtype).components
    found = jax.jit(family.quantile)(jnp.asarray(p)[:, None, None])[:, 0, :]
    assert found.dtype == dtype
    exact = frozen(name, parameters).ppf(p[:, None].astype(np.float64))
    # A relative error of eps |log p| in the probability is one of that over df in the quantile.
    # SciPy's own ppf for a million degrees of freedom is worth 1e-10.
    np.testing.assert_allclose(
        found, exact, rtol=1e-5 if dtype == np.float32 else 2e-10, atol=1e-15
    )
    ends = family.quantile(jnp.asarray([0.0, 1.0, 0.5, -0.1, 1.1, np.nan], dtype)[:, None, None])
    ends = np.asarray(ends)[:, 0, :]
    assert np.all(ends[0] == -np.inf)
    assert np.all(ends[1] == np.inf)
    assert np.all(ends[2] == 0.0)
    assert np.isnan(ends[3:]).all()


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


STUDENT_CASES = [
    (z, df)
    for df in (0.1, 0.3, 1.0, 2.0, 4.0, 7.3, 19.9, 20.1, 30.0, 300.0, 1e6)
    for z in (-3.0, -0.4, 1e-8, 0.01, 1.0, 1.3, 1.5, 3.0, 15.0, 1e3, 1e10)
    if df < 1000 or z < 20
]


@pytest.fixture(scope="module")
def student_oracle():
    """Value and derivative in ``df`` of the log-density and of the upper tail, by mpmath."""
    digits, mp.dps = mp.dps, 40
    rows = []
    for z, df in STUDENT_CASES:
        step = mp.mpf(df) * mp.mpf("1e-10")
        row = []
        for function in (exact_log_density, exact_tail):
            low, here, high = (function(z, mp.mpf(df) + i * step) for i in (-1, 0, 1))
            row += [here, (high - low) / (2 * step)]
        density = mp.exp(row[0])
        row += [mp.log(row[2]), row[3] / row[2], -density / row[2]]
        rows.append([float(x) for x in row])
    mp.dps = digits
    return np.array(rows).T


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_student_and_its_derivatives_in_df_against_mpmath(student_oracle, dtype):
    z, df = (jnp.asarray(x, dtype)[:, None] for x in np.array(STUDENT_CASES).T)
    unit = jnp.ones_like(df)
    one = jnp.asarray(1.0, dtype)

    def family(df):
        return StudentT(loc=jnp.zeros_like(df), scale=jnp.ones_like(df), df=df)

    @jax.jit
    def found(z, df):
        def of_df(method):
            return jax.jvp(lambda df: getattr(family(df), method)(z), (df,), (unit,))

        hazard = jax.jvp(lambda z: family(df).log_survival(z), (z,), (unit,))[1]
        # By reverse mode, too.
        pulled = jax.vjp(lambda df: family(df).log_survival(z), df)[1](unit)[0]
        parts = (*of_df("log_density"), *of_df("survival"), *of_df("log_survival"), hazard, pulled)
        return jnp.stack(parts)[..., 0]

    values = np.asarray(found(z, df), np.float64)
    exact = np.concatenate([student_oracle, student_oracle[5:6]])
    if dtype == np.float32:  # the oracle's z and df are not rounded: 0.1 is, by 1e-8
        # Errors of the exponent (log p up to 88), which exp makes relative ones of p.
        rtol, floor = 2e-5, np.finfo(np.float32).tiny
    else:
        rtol, floor = 5e-12, 1e-300
    close = np.abs(values - exact) <= rtol * np.abs(exact) + floor
    # Next to the median the derivative of the tail is a difference of numbers of order df^-2 z.
    small = np.abs(exact[[3]]) < 1e-20
    assert close[:3].all(), np.argwhere(~close[:3])
    assert (close[3:4] | small).all(), np.argwhere(~close[3:4])
    assert close[4].all(), np.argwhere(~close[4])
    assert (close[[5, 7]] | small).all(), np.argwhere(~close[[5, 7]])
    assert close[6].all(), np.argwhere(~close[6])
    assert one.dtype == dtype


def test_student_quantile_derivative_is_that_of_the_implicit_function(student_oracle):
    keep = [i for i, (z, df) in enumerate(STUDENT_CASES) if 0.01 <= abs(z) < 5.0]
    z, df = np.array(STUDENT_CASES)[keep].T
    p = 1 - student_oracle[2, keep]
    family = jax.jit(
        lambda p, df: StudentT(loc=jnp.zeros_like(p), scale=jnp.ones_like(p), df=df).quantile(p)
    )
    point = jnp.asarray(p), jnp.asarray(df)
    value, slope = jax.jvp(family, point, (jnp.zeros_like(point[0]), jnp.ones_like(point[0])))
    np.testing.assert_allclose(value, z, rtol=1e-12)
    density = np.exp(student_oracle[0, keep])
    np.testing.assert_allclose(slope, student_oracle[3, keep] / density, rtol=1e-9)
    in_p = jax.jvp(family, point, (jnp.ones_like(point[0]), jnp.zeros_like(point[0])))[1]
    np.testing.assert_allclose(in_p, 1 / density, rtol=1e-10)


@every_family
def test_gradients_by_finite_differences(name):
    rng = np.random.default_rng(6)
    logits, parameters = draw(name, rng, batch=(2,))
    y = jnp.asarray(3.0 * rng.normal(size=(2, D)))
    p = jnp.asarray(rng.uniform(0.05, 0.95, (2, D)))

    def functions(logits, parameters, y, p):
        mixture = jaxmdn.Mixture(logits=logits, components=FAMILIES[name](**parameters))
        return (
            jaxmdn.log_prob(mixture, y),
            jaxmdn.cdf(mixture, y),
            jaxmdn.log_cdf(mixture, y),
            jaxmdn.log_survival(mixture, y),
            mixture.components.quantile(p[..., None, :]),
        )

    point = (jnp.asarray(logits), jax.tree.map(jnp.asarray, parameters), y, p)
    check_grads(jax.jit(functions), point, order=1, modes=("rev",), rtol=1e-5, atol=1e-6)


@every_family
def test_second_derivatives_of_the_log_density(name):
    _, parameters = draw(name, np.random.default_rng(7), batch=(2,))
    y = jnp.asarray([[0.3, 2.0], [-1.0, 1e4]])

    def total(parameters):
        return jnp.sum(FAMILIES[name](**parameters).log_prob(y[:, None, :]))

    point = jax.tree.map(jnp.asarray, parameters)
    check_grads(jax.jit(jax.grad(total)), (point,), order=1, rtol=1e-5, atol=1e-6)


def test_derivatives_at_the_centre():
    """Where ``abs`` has no slope, the distribution function still has: the density."""
    for name, exact in (("laplace", 0.5), ("logistic", 0.25), ("student", stats.t(3.0).pdf(0.0))):
        parameters = {"loc": np.zeros((1, 1)), "scale": np.ones((1, 1)), "df": np.full((1, 1), 3.0)}
        if name != "student":
            del parameters["df"]
        mixture = build(name, [0.0], parameters)
        at = jnp.zeros(1)

        def functions(y, mixture=mixture):
            cdf, log_cdf = jaxmdn.cdf(mixture, y)[0], jaxmdn.log_cdf(mixture, y)[0]
            return cdf, jaxmdn.survival(mixture, y)[0], log_cdf, jaxmdn.log_prob(mixture, y)

        slopes = [slope[0] for slope in jax.jit(jax.jacfwd(functions))(at)]
        np.testing.assert_allclose(slopes, [exact, -exact, 2 * exact, 0.0], rtol=1e-14, atol=1e-15)


@every_family
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_tails(name, dtype):
    """1e10 scales away: finite log-densities and log-tails, and their slopes."""
    parameters = {"loc": np.zeros((2, 1)), "scale": np.array([[1e-3], [1.0]])}
    if name == "student":
        parameters["df"] = np.array([[3.0], [0.5]])
    mixture = build(name, [0.0, -1.0], parameters, dtype)
    y = jnp.asarray([-1e10, 1e10], dtype)[:, None]

    def functions(y):
        return jnp.stack(
            [
                jaxmdn.log_prob(mixture, y),
                jnp.minimum(jaxmdn.log_cdf(mixture, y), jaxmdn.log_survival(mixture, y))[..., 0],
            ]
        )

    values, slopes = jax.jvp(functions, (y,), (jnp.ones_like(y),))
    log_weight = float(special.log_softmax([0.0, -1.0])[1])
    if name == "student":
        tail = float(mp.log(exact_tail(1e10, 0.5)))
        exact = [float(exact_log_density(1e10, 0.5)), tail]
        slope = np.array([-1.5e-10, -0.5e-10])[:, None] * [-1, 1]
    else:
        exact = [-1e10 - (np.log(2.0) if name == "laplace" else 0.0), -1e10]
        slope = np.array([-1.0, -1.0])[:, None] * [-1, 1]
    rtol = 1e-6 if dtype == np.float32 else 1e-10
    np.testing.assert_allclose(values, np.array(exact)[:, None] + log_weight + [0, 0], rtol=rtol)
    np.testing.assert_allclose(slopes, slope, rtol=1e-5)


def test_student_at_its_limits():
    z = jnp.asarray([[-3.0], [0.2], [1.0], [8.0], [1e20], [np.inf], [-np.inf]], jnp.float32)
    one = jnp.ones((1, 1), jnp.float32)
    limit = StudentT(loc=0 * one, scale=one, df=jnp.inf * one)
    points = np.asarray(z, np.float64)
    normal = stats.norm.logpdf, stats.norm.cdf, stats.norm.sf, stats.norm.logsf
    methods = "log_density", "cdf", "survival", "log_survival"
    for method, exact in zip(methods, normal, strict=True):
        found = np.asarray(getattr(limit, method)(z))
        # 1e40 / 2 is beyond float32.
        with np.errstate(over="ignore"):
            expected = exact(points).astype(np.float32)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-30, err_msg=method)
    cauchy = StudentT(loc=0 * one, scale=one, df=one)
    # z^2 overflows, the density does not.
    exact = -np.log(np.pi) - 2 * np.log(1e20)
    np.testing.assert_allclose(cauchy.marginal_log_prob(z)[4], exact, rtol=1e-6)
    np.testing.assert_allclose(cauchy.survival(z)[4], 1e-20 / np.pi, rtol=1e-5)
    np.testing.assert_array_equal(cauchy.survival(z)[5:, 0], [0.0, 1.0])
    np.testing.assert_array_equal(cauchy.log_cdf(z)[5:, 0], [0.0, -np.inf])
    np.testing.assert_array_equal(cauchy.marginal_log_prob(z)[5:, 0], -np.inf)
    df = jnp.asarray([[0.5], [1.0], [1.5], [2.0], [4.0]])
    family = StudentT(loc=jnp.ones((5, 1)), scale=jnp.full((5, 1), 2.0), df=df)
    np.testing.assert_array_equal(family.mean()[:, 0], [np.nan, np.nan, 1, 1, 1])
    np.testing.assert_allclose(family.variance()[:, 0], [np.nan, np.nan, np.inf, np.inf, 8.0])
    # A component without moments counts for nothing where its weight is zero.
    weights = jnp.asarray([-jnp.inf] * 4 + [0.0])
    mixture = jaxmdn.Mixture(logits=weights, components=family)
    found = [jaxmdn.mean(mixture)[0], jaxmdn.variance(mixture)[0], jaxmdn.covariance(mixture)[0, 0]]
    np.testing.assert_allclose(found, [1.0, 8.0, 8.0])
    for bad in (-1.0, 0.0, np.nan):
        wrong = StudentT(loc=0 * one, scale=one, df=bad * one)
        for method in ("log_density", "cdf", "log_cdf"):
            assert not np.isfinite(getattr(wrong, method)(z[:4])).any(), (bad, method)


@every_family
def test_samples_follow_the_cdf(name):
    rng = np.random.default_rng(8)
    logits, parameters = draw(name, rng, batch=())
    for dtype in (np.float32, np.float64):
        mixture = build(name, logits, parameters, dtype)
        draws = jaxmdn.sample(jax.random.key(0), mixture, 4000)
        assert draws.dtype == dtype
        assert draws.shape == (4000, D)
        family = frozen(name, parameters)
        for d in range(D):
            values = np.asarray(draws[:, d], np.float64)
            uniform = average(logits, family.cdf(values[:, None, None]))[:, d]
            assert stats.kstest(uniform, "uniform").pvalue > 1e-3


def test_student_samples_of_extreme_degrees_of_freedom():
    df = jnp.asarray([[0.3, 1.0, 1e6, np.inf]])
    family = StudentT(loc=jnp.zeros((1, 4)), scale=jnp.ones((1, 4)), df=df)
    draws = np.asarray(family.sample(jax.random.key(1), (4000,)))[:, 0, :]
    for d, law in enumerate((stats.t(0.3), stats.t(1.0), stats.norm, stats.norm)):
        assert stats.kstest(draws[:, d], law.cdf).pvalue > 1e-3


def test_samples_are_differentiable_in_every_parameter():
    """``d E g(T) / d df`` for a bounded g, against quadrature; exact in loc and scale."""

    def g_mean(df):
        family = StudentT(loc=jnp.zeros((1, 1)), scale=jnp.ones((1, 1)), df=df[None, None])
        values = jnp.arctan(family.sample(jax.random.key(2), (40_000,)) ** 2)
        return jnp.mean(values), jnp.std(values)

    def exact(df):
        u = np.linspace(0.0, 30.0, 3001)  # t = sinh(u)
        return 2 * integrate.simpson(
            np.arctan(np.sinh(u) ** 2) * stats.t(df).pdf(np.sinh(u)) * np.cosh(u), x=u
        )

    (value, deviation), slope = jax.jvp(g_mean, (jnp.asarray(2.5),), (jnp.asarray(1.0),))
    assert abs(value - exact(2.5)) < 4 * deviation / 200
    np.testing.assert_allclose(slope[0], (exact(2.51) - exact(2.49)) / 0.02, rtol=0.1)
    for name, family in FAMILIES.items():
        shape = {"df": jnp.full((1, 1), 3.0)} if name == "student" else {}

        def sample(loc, scale, family=family, shape=shape):
            return family(loc=loc, scale=scale, **shape).sample(jax.random.key(3), (9,))

        point = jnp.zeros((1, 1)), jnp.full((1, 1), 2.0)
        one = jnp.ones((1, 1))
        np.testing.assert_allclose(jax.jvp(sample, point, (one, 0 * one))[1], 1.0)
        value, slope = jax.jvp(sample, point, (0 * one, one))
        np.testing.assert_allclose(slope, value / 2.0, rtol=1e-12)


@every_family
def test_one_component_and_dead_ones(name):
    rng = np.random.default_rng(9)
    _, parameters = draw(name, rng, K=1)
    y = jnp.asarray(rng.normal(size=(N, D)))
    alone = build(name, np.zeros((N, 1)), parameters)
    exact = np.sum(frozen(name, parameters).logpdf(np.asarray(y)[:, None, :]), axis=-1)[:, 0]
    np.testing.assert_allclose(jaxmdn.log_prob(alone, y), exact, rtol=1e-12)
    twice = {key: np.concatenate([x, x + 5.0], axis=1) for key, x in parameters.items()}
    logits = np.stack([np.zeros(N), np.full(N, -np.inf)], axis=-1)

    def total(logits, parameters):
        mixture = jaxmdn.Mixture(logits=logits, components=FAMILIES[name](**parameters))
        return jnp.sum(jaxmdn.log_prob(mixture, y)) + jnp.sum(jaxmdn.log_cdf(mixture, y))

    dead = build(name, logits, twice)
    np.testing.assert_allclose(jaxmdn.log_prob(dead, y), exact, rtol=1e-12)
    np.testing.assert_allclose(jaxmdn.cdf(dead, y), jaxmdn.cdf(alone, y), rtol=1e-12)
    gradients = jax.grad(total, argnums=(0, 1))(dead.logits, jax.tree.map(jnp.asarray, twice))
    for leaf in jax.tree.leaves(gradients):
        assert np.isfinite(leaf).all()
    assert np.all(np.asarray(gradients[1]["loc"])[:, 1] == 0.0)


@every_family
def test_marginal_condition_merge_quantile(name):
    rng = np.random.default_rng(10)
    logits, parameters = draw(name, rng, D=3, shared=True)
    mixture = build(name, logits, parameters)
    y = rng.normal(size=(N, 3))
    # A parameter of size one stays as it is.
    pair = jaxmdn.marginal(mixture, (2, 0))
    few = {key: x[..., (2, 0)] if x.shape[-1] > 1 else x for key, x in parameters.items()}
    exact = expected_log_prob(name, logits, few, y[:, (2, 0)])
    np.testing.assert_allclose(jaxmdn.log_prob(pair, jnp.asarray(y[:, (2, 0)])), exact, rtol=1e-11)
    rest = jaxmdn.condition(mixture, (0, 2), jnp.asarray(y[:, (0, 2)]))
    joint = expected_log_prob(name, logits, parameters, y)
    given = expected_log_prob(
        name,
        logits,
        {k: x[..., (0, 2)] if x.shape[-1] > 1 else x for k, x in parameters.items()},
        y[:, (0, 2)],
    )
    found = jaxmdn.log_prob(rest, jnp.asarray(y[:, (1,)]))
    np.testing.assert_allclose(found, joint - given, rtol=1e-9, atol=1e-10)
    # Shared parameters meet full ones.
    other = draw(name, rng, K=2, D=3)
    both = jaxmdn.merge([mixture, build(name, *other)], jnp.asarray([0.3, 0.7]))
    parts = [joint, expected_log_prob(name, *other, y)]
    exact = special.logsumexp(np.stack(parts, axis=-1), axis=-1, b=[0.3, 0.7])
    np.testing.assert_allclose(jaxmdn.log_prob(both, jnp.asarray(y)), exact, rtol=1e-11)
    p = rng.uniform(1e-3, 1 - 1e-3, (N, 3))
    value = np.asarray(jaxmdn.quantile(mixture, p))
    back = average(logits, frozen(name, parameters).cdf(value[:, None, :]))
    np.testing.assert_allclose(back, p, rtol=1e-11)
    shift, scale = jnp.asarray([1.0, 0.0, -2.0]), jnp.asarray([2.0, -3.0, 1.0])
    moved = mixture.affine(shift, scale)
    found = jaxmdn.log_prob(moved, shift + scale * jnp.asarray(y))
    np.testing.assert_allclose(found, joint - np.log(6.0), rtol=1e-11)


def expected_log_prob(name, logits, parameters, y):
    parts = np.sum(frozen(name, parameters).logpdf(y[..., None, :]), axis=-1)
    return special.logsumexp(special.log_softmax(logits, axis=-1) + parts, axis=-1)


@every_family
def test_rows_are_independent_of_each_other(name):
    logits, parameters = draw(name, np.random.default_rng(11))
    mixture = build(name, logits, parameters)
    y = jnp.asarray(np.random.default_rng(12).normal(size=(N, D)))
    batched = jaxmdn.log_survival(mixture, y)
    mapped = jax.vmap(jaxmdn.log_survival)(mixture, y)
    np.testing.assert_allclose(mapped, batched, rtol=1e-14)
    rows = [jaxmdn.log_survival(jax.tree.map(lambda x, n=n: x[n], mixture), y[n]) for n in range(N)]
    np.testing.assert_allclose(np.stack(rows), batched, rtol=1e-14)


@every_family
def test_bfloat16_parameters(name):
    logits, parameters = draw(name, np.random.default_rng(13))
    low = build(name, logits, parameters, jnp.bfloat16)
    exact = {
        field.name: np.asarray(getattr(low.components, field.name).astype(jnp.float64))
        for field in dataclasses.fields(low.components)
    }
    y = np.random.default_rng(14).normal(size=(N, D)).astype(np.float32)
    found = jaxmdn.log_prob(low, jnp.asarray(y))
    assert found.dtype == np.float32
    weights = np.asarray(low.logits.astype(jnp.float64))
    np.testing.assert_allclose(found, expected_log_prob(name, weights, exact, y), rtol=1e-5)
    assert low.components.mean().dtype == jnp.bfloat16
    assert jaxmdn.sample(jax.random.key(0), low).dtype == jnp.bfloat16


@every_family
@settings(max_examples=17, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_quantile_inverts_scipy_s_cdf_on_random_mixtures(name, seed):
    # Twenty mixtures an example, over a thousand in all.
    rng = np.random.default_rng(seed)
    logits, parameters = draw(name, rng, D=1, batch=(20,))
    parameters["loc"] = parameters["loc"] * rng.choice([0.1, 1.0, 30.0])
    p = rng.uniform(1e-6, 1 - 1e-6, (20, 1))
    y = np.asarray(jaxmdn.quantile(build(name, logits, parameters), jnp.asarray(p)))
    family = frozen(name, parameters)
    below = average(logits, family.cdf(y[:, None, :]))
    density = average(logits, family.pdf(y[:, None, :]))
    largest = np.max(np.abs(parameters["loc"]), axis=-2)
    assert np.all(np.abs(below - p) <= 1e-13 + 1e-13 * density * (np.abs(y) + largest))


def test_no_two_families_have_equal_structures():
    """Else a function compiled for one of them may be run for another (see ``register``)."""
    families, todo = set(), [Density]
    while todo:
        family = todo.pop()
        todo += family.__subclasses__()
        if dataclasses.is_dataclass(family) and family.__module__.startswith("jaxmdn."):
            families.add(family)
    assert {Laplace, Logistic, StudentT, jaxmdn.Mixture} <= families
    structures = {}
    for family in families:
        empty = object.__new__(family)  # fields are not checked, and not needed
        for field in dataclasses.fields(family):
            object.__setattr__(empty, field.name, 0)
        structures[family] = jax.tree.structure(empty)
    for first, second in itertools.combinations(families, 2):
        assert structures[first] != structures[second], (first, second)


def test_registered_families_are_pytrees():
    family = StudentT(loc=jnp.zeros((2, 1)), scale=jnp.ones((2, 1)), df=jnp.full((2, 1), 3.0))
    leaves, structure = jax.tree.flatten(family)
    assert [leaf[0, 0] for leaf in leaves] == [0.0, 1.0, 3.0]
    assert jax.tree.unflatten(structure, leaves).df is family.df
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(family)]
    assert names == [".loc", ".scale", ".df"]
