"""Families of counts (Poisson, negative binomial, Bernoulli): against SciPy, mpmath and sums."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

import jaxmdn
from jaxmdn.components import Bernoulli, NegativeBinomial, Normal, Poisson

mp = mpmath.MPContext()
mp.dps = 70
DTYPES = (np.float64, np.float32)


def rounded(*arrays):
    """Numbers that float32 has, so that both dtypes have the same exact answers."""
    return tuple(np.float64(np.float32(array)) for array in arrays)


def points(seed, count):
    """Counts, means and concentrations over the whole range, extremes included."""
    rng = np.random.default_rng(seed)
    mean = 10 ** rng.uniform(-4, 6, count)
    concentration = 10 ** rng.uniform(-2, 8, count)
    concentration[::6] = np.inf  # Poisson
    spread = np.sqrt(mean + mean**2 / concentration)
    y = np.round(np.abs(mean + spread * rng.normal(size=count)))
    y[::5] = rng.integers(0, 8, len(y[::5]))
    y[1::7], mean[1::7] = 1e6, 1e6 + rng.normal(size=len(y[1::7])) * 3e3
    return rounded(np.minimum(y, 2e6), mean, concentration)


def log_mass(y, mean, concentration):
    """The textbook formula in 70 digits."""
    y, m = mp.mpf(y), mp.mpf(mean)
    if mp.isinf(concentration):
        return y * mp.log(m) - m - mp.loggamma(y + 1)
    r = mp.mpf(concentration)
    choices = mp.loggamma(y + r) - mp.loggamma(r) - mp.loggamma(y + 1)
    return choices + r * mp.log(r / (r + m)) + y * mp.log(m / (r + m))


def slope(function, *point):
    """Central differences in each argument but the first, in 70 digits."""
    result = []
    for i in range(1, len(point)):
        if np.isinf(point[i]):
            result.append(0.0)
            continue
        step = mp.mpf(point[i]) * mp.mpf("1e-18")
        above, below = list(point), list(point)
        above[i], below[i] = mp.mpf(point[i]) + step, mp.mpf(point[i]) - step
        result.append(float((function(*above) - function(*below)) / (2 * step)))
    return result


def tails(y, mean, concentration):
    """``P(Y <= y)`` and ``P(Y > y)``: positive terms, summed by their ratios in float64."""
    mass = float(mp.exp(log_mass(y, mean, concentration)))
    ratio = 1 / concentration
    q = mean / (1 + mean * ratio)  # p(k + 1) / p(k) = q (1 + k / r) / (k + 1)
    if y + 1 < mean:
        k = np.arange(y, 0, -1.0)
        below = mass * (1 + np.sum(np.cumprod(k / (q * (1 + (k - 1) * ratio)))))
        return below, 1 - below
    spread = np.sqrt(mean + mean**2 * ratio)
    k = np.arange(y, y + 300 + 60 * spread + 60 * mean * ratio)
    above = mass * np.sum(np.cumprod(q * (1 + k * ratio) / (k + 1)))
    return 1 - above, above


def families(mean, concentration, dtype):
    """A negative binomial and a Poisson family of batch shape ``[N]``."""
    mean, concentration = (jnp.asarray(x, dtype)[:, None] for x in (mean, concentration))
    return NegativeBinomial(rate=mean, concentration=concentration), Poisson(rate=mean)


@jax.jit
def masses(families, y):
    def value(family):
        return family.log_density(y)

    return [(value(family), jax.grad(lambda f: jnp.sum(value(f)))(family)) for family in families]


def test_log_masses_and_their_slopes():
    y, mean, concentration = points(1, 300)
    exact = np.array([float(log_mass(*p)) for p in zip(y, mean, concentration, strict=True)])
    slopes = np.array([slope(log_mass, *p) for p in zip(y, mean, concentration, strict=True)]).T
    poisson = stats.poisson.logpmf(y, mean), y / mean - 1
    for dtype in DTYPES:
        found = masses(families(mean, concentration, dtype), jnp.asarray(y, dtype)[:, None])
        eps = np.finfo(dtype).eps
        value, gradient = found[0]
        assert value.dtype == dtype
        # A few roundings of the largest term, which is of the size of the result or one.
        np.testing.assert_allclose(value[:, 0], exact, rtol=8 * eps, atol=8 * eps)
        np.testing.assert_allclose(gradient.rate[:, 0], slopes[0], rtol=8 * eps, atol=8 * eps)
        # The slope in the concentration is a sum of terms, each of relative accuracy.
        finite = np.isfinite(concentration)
        r = np.where(finite, concentration, 1)
        t = (y - mean) / (r + mean)
        terms = 0.5 * y / r / (r + y) + np.abs(slopes[1]) + np.minimum(1 / r, 1 / r**2) * (y > 0)
        terms += np.abs(t - np.log1p(t))
        error = np.abs(np.float64(gradient.concentration[:, 0]) - slopes[1])
        assert np.max(error / (eps * terms)) < 20
        np.testing.assert_array_equal(gradient.concentration[~finite], 0)
        value, gradient = found[1]
        # SciPy's own formula has lost six digits at counts of a million.
        np.testing.assert_allclose(value[:, 0], poisson[0], rtol=max(8 * eps, 1e-9), atol=1e-6)
        np.testing.assert_allclose(gradient.rate[:, 0], poisson[1], rtol=8 * eps, atol=2 * eps)


@jax.jit
def distribution(families, y):
    def values(family):
        names = ("cdf", "survival", "log_cdf", "log_survival")
        return {name: getattr(family, name)(y) for name in names}

    result = []
    for family in families:
        one = jax.tree.map(jnp.ones_like, family)
        slopes = {}
        for name in family.event_ranks:
            direction = jax.tree.map(jnp.zeros_like, family)
            direction = type(family)(**{**vars(direction), name: getattr(one, name)})
            slopes[name] = jax.jvp(values, (family,), (direction,))[1]
        result.append((values(family), slopes))
    return result


def test_tails_and_their_slopes():
    y, mean, concentration = points(2, 250)
    (concentration,) = rounded(np.maximum(concentration, mean / 3e3))  # for the oracle's sums
    arguments = list(zip(y, mean, concentration, strict=True))
    below, above = np.array([tails(*p) for p in arguments]).T
    change = {
        "rate": np.array(
            [
                (tails(a, m * (1 + 1e-5), r)[0] - tails(a, m * (1 - 1e-5), r)[0]) / (2e-5 * m)
                for a, m, r in arguments
            ]
        ),
        "concentration": np.array(
            [
                (tails(a, m, r * (1 + 1e-4))[0] - tails(a, m, r * (1 - 1e-4))[0]) / (2e-4 * r)
                for a, m, r in arguments
            ]
        ),
    }
    for dtype in DTYPES:
        values, slopes = distribution(
            families(mean, concentration, dtype), jnp.asarray(y, dtype)[:, None]
        )[0]
        # The tail is exp(log mass) times an integral: the error of the logarithm, up to 60 or so.
        rtol = 3e-11 if dtype == np.float64 else 1e-5
        for name, exact in (("cdf", below), ("survival", above)):
            seen = exact > 1e-25
            np.testing.assert_allclose(values[name][seen, 0], exact[seen], rtol=rtol)
            with np.errstate(divide="ignore"):
                logs = np.log(exact)
            log = values[f"log_{name}"][:, 0]
            np.testing.assert_allclose(log[seen], logs[seen], rtol=rtol, atol=rtol)
        for name, exact in change.items():
            scale = np.max(np.abs(exact)) if name == "rate" else 1.0
            step = {
                "rate": mean,
                "concentration": np.where(np.isinf(concentration), 0, concentration),
            }
            # Differences of numbers near one, over steps of 1e-5 (1e-4), in float64.
            atol = (2e-9 if dtype == np.float64 else 3e-6) * scale
            found = np.float64(slopes[name]["cdf"][:, 0])
            error = np.abs(found - np.nan_to_num(exact)) * np.minimum(step[name], 1e30)
            assert np.max(error / (1 + np.abs(np.nan_to_num(exact)) * step[name])) < atol / scale
            np.testing.assert_array_equal(slopes[name]["survival"], -slopes[name]["cdf"])
            for log, tail in (("log_cdf", below), ("log_survival", above)):
                sign = 1 if log == "log_cdf" else -1
                seen = tail > 1e-25
                product = slopes[name][log][seen, 0] * tail[seen] * sign
                np.testing.assert_allclose(product, found[seen], rtol=3e-5, atol=1e-30)


def test_poisson_tails():
    rng = np.random.default_rng(3)
    (mean,) = rounded(10 ** rng.uniform(-3, 6, 300))
    y = np.floor(np.maximum(mean + 4 * np.sqrt(mean) * rng.normal(size=300), 0))
    for dtype in DTYPES:
        family = families(mean, mean, dtype)[1:]
        values, slopes = distribution(family, jnp.asarray(y, dtype)[:, None])[0]
        rtol = 1e-10 if dtype == np.float64 else 2e-5
        for name, exact in (("cdf", stats.poisson.cdf), ("survival", stats.poisson.sf)):
            exact = exact(y, mean)
            seen = exact > 1e-25
            np.testing.assert_allclose(values[name][seen, 0], exact[seen], rtol=rtol)
        slope_exact = -stats.poisson.pmf(y, mean)
        np.testing.assert_allclose(
            slopes["rate"]["cdf"][:, 0], slope_exact, rtol=max(rtol, 1e-8), atol=1e-30
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantiles_are_the_first_count_that_reaches(dtype):
    rng = np.random.default_rng(4)
    mean, concentration = rounded(
        10 ** rng.uniform(-2, 6, 60),
        np.where(np.arange(60) % 3, 10 ** rng.uniform(-1, 8, 60), np.inf),
    )
    (concentration,) = rounded(np.maximum(concentration, mean / 3e3))  # for the oracle's sums
    p = 10 ** rng.uniform(-6, np.log10(0.5), (5, 60))
    p = np.where(rng.random(p.shape) < 0.5, p, 1 - p).astype(dtype)
    family = families(mean, concentration, dtype)[0]

    @jax.jit
    def run(family, p):
        return family.quantile(p), jax.grad(lambda f: jnp.sum(f.quantile(p)))(family)

    found, gradient = run(family, jnp.asarray(p)[..., None])
    found, p = np.float64(found[..., 0]), np.float64(p)
    np.testing.assert_array_equal(found, np.round(found))
    for i, j in np.ndindex(*found.shape):
        at, before = (
            tails(found[i, j] - back, mean[j], concentration[j]) if found[i, j] >= back else (0, 1)
            for back in (0, 1)
        )
        slack = 1e-9 if dtype == np.float64 else 3e-5  # of the tails, in which p is compared
        room = 4 * np.finfo(dtype).eps
        if found[i, j] >= 2**24:
            continue  # not every count is a number of float32
        assert at[0] >= p[i, j] * (1 - slack) or at[1] <= (1 - p[i, j]) * (1 + slack) + room
        assert before[0] < p[i, j] * (1 + slack) or before[1] > (1 - p[i, j]) * (1 - slack) - room
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(leaf, 0)


def test_quantiles_at_the_ends_and_back_from_the_cdf():
    family = Poisson(rate=jnp.array([[0.2], [0.9], [12.0], [4e5]]))
    ends = family.quantile(jnp.array([0.0, 1.0, -0.1, 1.1, np.nan])[:, None, None])[..., 0]
    np.testing.assert_array_equal(ends[0], 0)
    np.testing.assert_array_equal(ends[1], np.inf)
    assert np.all(np.isnan(ends[2:]))
    y = jnp.array([[0.0], [2.0], [19.0], [401_000.0]])
    np.testing.assert_array_equal(family.quantile(family.cdf(y)), y)
    coin = Bernoulli(logit=jnp.array([[-1.0], [2.0]]))
    no = 1 / (1 + np.exp([-1.0, 2.0]))
    levels = jnp.array([0.0, 0.05, 0.5, 0.9, 1.0, 1.5])
    expected = np.where(np.asarray(levels)[:, None] <= no, 0.0, 1.0)
    expected[-2:] = [[1.0] * 2, [np.nan] * 2]
    np.testing.assert_array_equal(coin.quantile(levels[:, None, None])[..., 0], expected)


def test_bernoulli_against_scipy():
    logit = np.array([-80.0, -3.0, 0.0, 0.4, 35.0])
    family = Bernoulli(logit=jnp.asarray(logit)[:, None])
    exact = stats.bernoulli(special.expit(logit[:-1]))
    for y in (0, 1):
        np.testing.assert_allclose(
            family.log_density(jnp.array([[y]]))[:-1, 0], exact.logpmf(y), rtol=1e-12
        )
        np.testing.assert_allclose(family.cdf(jnp.array([[y]]))[:-1, 0], exact.cdf(y), rtol=1e-12)
    np.testing.assert_allclose(family.survival(jnp.array([0.0]))[:, 0], special.expit(logit))
    np.testing.assert_allclose(family.cdf(jnp.array([0.5]))[:, 0], special.expit(-logit))
    np.testing.assert_allclose(family.log_cdf(jnp.array([0.0]))[:, 0], special.log_expit(-logit))
    log_above = family.log_survival(jnp.array([0.0]))[:, 0]
    np.testing.assert_allclose(log_above, special.log_expit(logit))
    np.testing.assert_allclose(family.mean()[:, 0], special.expit(logit))
    variance = special.expit(logit) * special.expit(-logit)
    np.testing.assert_allclose(family.variance()[:, 0], variance)
    gradient = jax.grad(lambda f: jnp.sum(f.log_density(jnp.ones((1,)))))(family)
    np.testing.assert_allclose(gradient.logit[:, 0], special.expit(-logit))


FAMILIES = {
    "poisson": lambda x: Poisson(rate=jnp.exp(x)),
    "negative-binomial": lambda x: NegativeBinomial(rate=jnp.exp(x), concentration=jnp.exp(-x)),
    "bernoulli": lambda x: Bernoulli(logit=x),
}
every_family = pytest.mark.parametrize("name", FAMILIES)


@every_family
def test_off_the_whole_numbers(name):
    make = FAMILIES[name]
    outside = [-1.0, -0.5, 0.5, 2.5, np.inf, -np.inf, *([2.0] if name == "bernoulli" else [])]

    @jax.jit
    def run(x, y):
        def total(x, y):
            return jnp.sum(jnp.where(jnp.isnan(y), 0, make(x).log_density(y) + make(x).cdf(y)))

        family = make(x)
        values = family.log_density(y), family.cdf(y), family.survival(y), family.in_support(y)
        return *values, jax.grad(total, argnums=(0, 1))(x, y)

    y = np.array([*outside, np.nan])[:, None]
    density, cdf, survival, inside, gradients = run(jnp.array([0.3]), jnp.asarray(y))
    np.testing.assert_array_equal(density[:-1], -np.inf)
    np.testing.assert_allclose(survival[:-1], 1 - cdf[:-1], rtol=1e-14)
    assert not np.any(inside)
    for values in (density, cdf, survival):
        assert np.isnan(values[-1, 0])
    steps = np.where(y[:-1] < 0, 0.0, 1.0)
    known = ~np.isfinite(y[:-1]) | (y[:-1] < 0)
    np.testing.assert_array_equal(cdf[:-1][known], steps[known])
    np.testing.assert_allclose(cdf[2], make(jnp.array([0.3])).cdf(jnp.array([0.0])), rtol=1e-14)
    np.testing.assert_array_equal(gradients[1], 0)
    assert np.isfinite(gradients[0])
    only = jax.jit(jax.grad(lambda x, y: jnp.sum(make(x).log_density(y))))
    np.testing.assert_array_equal(only(jnp.array([0.3]), jnp.asarray(y[:-1])), 0)


@every_family
def test_whole_numbers_of_every_dtype_sum_to_one(name):
    y = np.arange(400)[:, None]

    @jax.jit
    def run(x, *targets):
        family = FAMILIES[name](x)
        return family.mean(), family.variance(), *(family.log_density(y) for y in targets)

    targets = jnp.asarray(y, jnp.int32), jnp.asarray(y, jnp.float64)
    mean, variance, *logs = run(jnp.array([0.3, 1.2]), *targets)
    np.testing.assert_array_equal(*logs)
    masses = np.exp(logs[0])
    np.testing.assert_allclose(np.sum(masses, axis=0), 1, rtol=1e-12)
    np.testing.assert_allclose(mean, np.sum(masses * y, axis=0), rtol=1e-9)
    np.testing.assert_allclose(variance, np.sum(masses * (y - mean) ** 2, axis=0), rtol=1e-6)


def test_rates_at_the_edge():
    y = jnp.array([0.0, 1.0, 5.0])[:, None, None]

    @jax.jit
    def run(rate):
        family = Poisson(rate=rate)
        values = family.log_density(y), family.cdf(y), family.survival(y)
        return *values, family.log_cdf(y), family.log_survival(y), family.quantile(jnp.full(1, 0.7))

    def slopes(rate):
        return jax.jvp(run, (rate,), (jnp.ones_like(rate),))[1]

    nothing = jnp.zeros((1, 1))
    density, cdf, survival, _, _, quantile = run(nothing)
    np.testing.assert_array_equal(density[:, 0, 0], [0, -np.inf, -np.inf])
    np.testing.assert_array_equal(cdf, 1)
    np.testing.assert_array_equal(survival, 0)
    np.testing.assert_array_equal(quantile, 0)
    density, cdf, survival, log_cdf, log_survival, _ = slopes(nothing)
    np.testing.assert_array_equal(density[:, 0, 0], [-1, 0, 0])  # of exp(-rate)
    np.testing.assert_allclose(survival[:, 0, 0], [1, 0, 0], rtol=1e-14)  # of 1 - exp(-rate)
    np.testing.assert_array_equal(cdf, -survival)
    np.testing.assert_allclose(log_cdf, cdf, rtol=1e-14)
    assert np.all(np.isfinite(log_survival))

    negative = jax.jit(
        lambda m, r: NegativeBinomial(rate=m, concentration=r).log_density(jnp.ones((1,)))
    )
    for bad in (-1.0, np.nan):
        assert np.isnan(run(jnp.full((1, 1), bad))[0]).all()
        assert np.isnan(negative(jnp.ones((1, 1)), jnp.full((1, 1), bad))).all()


def chi_square(draws, mass, cdf, expected=20):
    """P-value of counts against masses; neighbours are pooled until a cell expects enough."""
    levels = np.arange(draws.min(), draws.max() + 1)
    probabilities = mass(levels) * len(draws)
    observed = np.bincount((draws - levels[0]).astype(int), minlength=len(levels))
    probabilities[0] += len(draws) * cdf(levels[0] - 1)
    probabilities[-1] += len(draws) * (1 - cdf(levels[-1]))
    cells = np.floor(np.cumsum(probabilities) / max(expected, len(draws) / 200))
    cells = np.unique(cells, return_inverse=True)[1]
    seen, due = (np.bincount(cells, weights) for weights in (observed, probabilities))
    statistic = np.sum((seen - due) ** 2 / due)
    return stats.chi2.sf(statistic, max(len(due) - 1, 1)) if len(due) > 1 else 1.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples(dtype):
    rates = np.array([0.0, 0.02, 1.0, 9.9, 10.1, 60.0, 3e3, 1e6])
    r = np.array([1.0, 0.05, 0.7, 3.0, 1e3, 5.0, 1e5, np.inf])

    @jax.jit
    def run(key, rates, r):
        poisson = Poisson(rate=rates)
        negative = NegativeBinomial(rate=rates, concentration=r)
        return poisson.sample(key, (8000,)), negative.sample(key, (8000,))

    columns = (jnp.asarray(x, dtype)[:, None] for x in (rates, r))
    poisson, negative = (np.asarray(x)[..., 0] for x in run(jax.random.key(5), *columns))
    assert poisson.dtype == dtype
    for i, rate in enumerate(rates):
        one = stats.poisson(rate)
        assert chi_square(poisson[:, i], one.pmf, one.cdf) > 1e-4, rate
        if np.isfinite(r[i]) and rate > 0:
            one = stats.nbinom(r[i], r[i] / (r[i] + rate))
        assert chi_square(negative[:, i], one.pmf, one.cdf) > 1e-4, (rate, r[i])
    draws = Bernoulli(logit=jnp.asarray([[-1.0]], dtype)).sample(jax.random.key(6), (4000,))
    assert stats.binomtest(int(draws.sum()), 4000, float(special.expit(-1))).pvalue > 1e-4


def test_samples_of_nothing_are_nan_and_keys_of_all_kinds_serve():
    key = jax.random.key(0, impl="rbg")
    draws = Poisson(rate=jnp.array([[-1.0], [np.nan], [5.0]])).sample(key)
    assert np.isnan(draws[:2]).all()
    assert float(draws[2, 0]) >= 0


def random_mixture(rng, rows, K=3, D=2):
    return jaxmdn.Mixture(
        logits=jnp.asarray(rng.normal(size=(rows, K))),
        components=NegativeBinomial(
            rate=jnp.asarray(np.exp(2 * rng.normal(size=(rows, K, D)))),
            concentration=jnp.asarray(np.exp(rng.normal(size=(rows, 1, D)))),
        ),
    )


def parts(mixture):
    """SciPy's weights ``[N, K]`` and components ``[N, K, D]``."""
    weights = special.softmax(np.asarray(mixture.logits), axis=-1)
    rate, r = (np.asarray(x) for x in (mixture.components.rate, mixture.components.concentration))
    return weights, stats.nbinom(np.broadcast_to(r, rate.shape), r / (r + rate))


@jax.jit
def of_mixture(mixture, y, p, key):
    return {
        "log_prob": jaxmdn.log_prob(mixture, y),
        "cdf": jaxmdn.cdf(mixture, y),
        "quantile": jaxmdn.quantile(mixture, p),
        "pit": jaxmdn.pit(mixture, y, key=key),
    }


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_random_mixtures(seed):
    rng = np.random.default_rng(seed)
    mixture = random_mixture(rng, 20)
    weights, exact = parts(mixture)
    y = np.floor(np.exp(2 * rng.normal(size=(20, 2))))
    p = rng.uniform(1e-3, 1 - 1e-3, (20, 2))
    found = of_mixture(mixture, jnp.asarray(y), jnp.asarray(p), jax.random.key(seed))
    joint = np.log(weights) + np.sum(exact.logpmf(y[:, None]), axis=-1)
    np.testing.assert_allclose(found["log_prob"], special.logsumexp(joint, axis=-1), rtol=1e-9)

    def cdf(y):
        return np.sum(weights[..., None] * exact.cdf(y[:, None]), axis=-2)

    np.testing.assert_allclose(found["cdf"], cdf(y), rtol=1e-9)
    root = np.asarray(found["quantile"])
    assert np.all(root == np.round(root))
    assert np.all(cdf(root) >= p - 1e-9)
    assert np.all(cdf(root - 1) < p + 1e-9)
    assert np.all((found["pit"] >= cdf(y - 1) - 1e-9) & (found["pit"] <= cdf(y) + 1e-9))


def test_pit_of_counts_is_uniform():
    mixture = random_mixture(np.random.default_rng(7), 1, D=1)
    key_sample, key_pit = jax.random.split(jax.random.key(8))
    y = jaxmdn.sample(key_sample, mixture, (5000,))
    values = np.ravel(jaxmdn.pit(mixture, y, key=key_pit))
    assert stats.kstest(values, "uniform").pvalue > 1e-3


def test_counts_beside_real_numbers_have_whole_quantiles():
    mixture = jaxmdn.Mixture(
        logits=jnp.array([0.2, -0.3]),
        components=jaxmdn.components.Independent(
            parts=(
                Normal(loc=jnp.array([[-1.0], [2.0]]), scale=jnp.ones((2, 1))),
                Poisson(rate=jnp.array([[3.0], [30.0]])),
            ),
            dims=((1,), (0,)),
        ),
    )
    weights = special.softmax([0.2, -0.3])
    for p in (0.01, 0.5, 0.8):
        count, real = jaxmdn.quantile(mixture, p)
        assert weights @ stats.poisson.cdf(count, [3, 30]) >= p
        assert weights @ stats.poisson.cdf(count - 1, [3, 30]) < p
        np.testing.assert_allclose(weights @ stats.norm.cdf(real, [-1, 2]), p, rtol=1e-9)


def test_structure():
    mixture = random_mixture(np.random.default_rng(9), 4)
    y = jnp.asarray(np.arange(8.0).reshape(4, 2))
    value = jaxmdn.log_prob(mixture, y)
    assert mixture.discrete
    np.testing.assert_allclose(jax.vmap(jaxmdn.log_prob)(mixture, y), value, rtol=1e-13)
    pooled = jaxmdn.merge([mixture, mixture])
    np.testing.assert_allclose(jaxmdn.log_prob(pooled, y), value, rtol=1e-12)
    first = jaxmdn.log_prob(jaxmdn.marginal(mixture, (1,)), y[:, 1:])
    rest = jaxmdn.condition(mixture, (1,), y[:, 1:])
    np.testing.assert_allclose(first + jaxmdn.log_prob(rest, y[:, :1]), value, rtol=1e-12)
    same = mixture.components.affine(jnp.zeros(2), jnp.ones(2))
    assert same is mixture.components
    classes = jaxmdn.Mixture(
        logits=jnp.zeros((2,)), components=jax.tree.map(lambda x: x[:2], mixture)
    )
    nested = jaxmdn.quantile(classes, 0.4)
    flat = jaxmdn.merge([jax.tree.map(lambda x, i=i: x[i], mixture) for i in (0, 1)])
    np.testing.assert_array_equal(nested, jaxmdn.quantile(flat, 0.4))


@pytest.mark.parametrize("dtype", DTYPES)
def test_from_moments(dtype):
    mean, variance = jnp.array([[0.4, 12.0, 5e5]], dtype), jnp.array([[0.9, 40.0, 6e8]], dtype)
    family = NegativeBinomial.from_moments(mean, variance)
    np.testing.assert_allclose(family.mean(), mean, rtol=1e-6)
    np.testing.assert_allclose(family.variance(), variance, rtol=1e-5)
    narrow = NegativeBinomial.from_moments(mean, 0.1 * mean)
    np.testing.assert_allclose(narrow.variance(), mean, rtol=1e-2)
    np.testing.assert_array_equal(Poisson.from_moments(mean, variance).mean(), mean)
    chance = Bernoulli.from_moments(jnp.array([[0.0, 0.3, 1.0]], dtype), variance)
    np.testing.assert_allclose(chance.mean(), [[0, 0.3, 1]], atol=1e-6)
    for member in (family, narrow, chance):
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(member))


def test_second_derivatives_and_low_precision():
    rate, r, y = jnp.array([3.0]), jnp.array([1.7]), jnp.array([4.0])

    def value(x):
        return NegativeBinomial(rate=x[0], concentration=x[1]).log_density(y)[0]

    found = jax.jit(jax.hessian(value))(jnp.stack([rate, r]))[:, 0, :, 0]
    m, k, n = 3.0, 1.7, 4.0
    mixed = -(n - m) / (k + m) ** 2 * -1
    in_rate = -n / m**2 + (n + k) / (k + m) ** 2
    trigamma = special.polygamma(1, n + k) - special.polygamma(1, k)
    in_r = trigamma + 1 / k - 2 / (k + m) + (n + k) / (k + m) ** 2
    np.testing.assert_allclose(found, [[in_rate, mixed], [mixed, in_r]], rtol=1e-9)
    half = Poisson(rate=jnp.array([[700.0]], jnp.bfloat16))
    count = half.sample(jax.random.key(1))
    assert count.dtype == jnp.float32  # whole numbers beyond 256 are none of bfloat16
    assert half.log_density(count).dtype == jnp.float32
    assert half.mean().dtype == jnp.bfloat16
