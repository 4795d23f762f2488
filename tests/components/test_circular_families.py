"""The von Mises family: against quadrature in extended precision, SciPy and mpmath."""

from functools import partial

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from family_checks import K, compare, mixing, rearranged
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

import jaxmdn
from jaxmdn.components import VonMises
from jaxmdn.special import circular

LD = np.longdouble
PI = LD("3.14159265358979323846")
N = 64
DTYPES = pytest.mark.parametrize("dtype", [np.float64, np.float32])
CONCENTRATIONS = np.array([0, 1e-3, 0.3, 1, 4, 30, 1e4, 1e8])
VALUES = ("log_density", "cdf", "survival", "log_cdf", "log_survival")


def exact(y, loc, k):
    """Values of the representative in [-pi, pi], and slopes in ``loc`` and the concentration.

    Gauss and Legendre on pieces of half a standard deviation: the numbers of a tail are sums of
    positive ones.
    """
    y, loc, k = (np.asarray(v, LD)[:, None] for v in (y, loc, k))
    width = 1 / np.sqrt(np.maximum(k, LD(0.5)))
    steps = np.linspace(-16, 16, 65).astype(LD) * width
    turns = [np.minimum(np.maximum(loc + 2 * PI * turn + steps, -PI), PI) for turn in (-1, 0, 1)]
    ends = np.zeros_like(y) - PI, y, np.zeros_like(y) + PI
    cuts = np.sort(np.concatenate([*ends, *turns], axis=1), axis=1)  # [N, B]
    nodes, weights = (v.astype(LD) for v in np.polynomial.legendre.leggauss(24))
    middle, half = (cuts[:, 1:] + cuts[:, :-1]) / 2, (cuts[:, 1:] - cuts[:, :-1]) / 2
    t = middle[..., None] + half[..., None] * nodes  # [N, B - 1, 24]
    bulge = 2 * np.sin((t - loc[..., None]) / 2) ** 2  # 1 - cos
    density = np.exp(-k[..., None] * bulge) * weights * half[..., None]
    below = middle < y

    def total(values, where=True):
        return np.sum(np.where(where, np.sum(values, axis=-1), 0), axis=1)

    norm = total(density)
    density = density / norm[:, None, None]
    gap = total(density * bulge)
    score = gap[:, None, None] - bulge  # of the concentration
    cdf, survival = total(density, below), total(density, ~below)
    mean = total(density * t)
    square = (t - mean[:, None, None]) ** 2
    y, loc, k = y[:, 0], loc[:, 0], k[:, 0]

    def point(y):
        return np.exp(-2 * k * np.sin((y - loc) / 2) ** 2) / norm

    # The smaller one's own sum has the digits.
    in_k = total(density * score, below), -total(density * score, ~below)
    in_k = np.where(cdf < survival, *in_k)
    in_loc = point(-PI) - point(y)
    log_in_loc, log_in_k = k * np.sin(y - loc), gap - 2 * np.sin((y - loc) / 2) ** 2
    pull = k[:, None, None] * np.sin(t - loc[:, None, None])
    tiny = LD("1e-4000")
    values = {
        "log_density": -2 * k * np.sin((y - loc) / 2) ** 2 - np.log(norm),
        "cdf": cdf,
        "survival": survival,
        "log_cdf": np.where(cdf < 0.5, np.log(np.maximum(cdf, tiny)), np.log1p(-survival)),
        "log_survival": np.where(
            survival < 0.5, np.log(np.maximum(survival, tiny)), np.log1p(-cdf)
        ),
        "mean": mean,
        "variance": total(density * square),
        "circular_variance": gap,
        "point": point(y),
        # What an error of a last place of pi costs, and what is taken off or put on at the cut.
        "cut": point(PI) + total(density, np.abs(middle - loc[:, None]) > PI),
    }

    def slopes(log_density, cdf, score):
        return {
            "log_density": log_density,
            "cdf": cdf,
            "survival": -cdf,
            "log_cdf": cdf / np.maximum(values["cdf"], tiny),
            "log_survival": -cdf / np.maximum(values["survival"], tiny),
            "mean": total(density * t * score),
            "variance": total(density * square * score),
        }

    return values, {
        "loc": slopes(log_in_loc, in_loc, pull),
        "concentration": slopes(log_in_k, in_k, score),
        "y": {"log_density": -log_in_loc, "cdf": point(y)},
    }


@jax.jit
def run(parameters, y, p):
    """All there is of the family in one compilation: values, slopes forward and backward."""

    def outputs(parameters, y):
        family = VonMises(**{name: value[:, None] for name, value in parameters.items()})
        found = {name: getattr(family, name)(y[:, None]) for name in VALUES}
        found |= {"mean": family.mean(), "variance": family.variance()}
        found |= {"quantile": family.quantile(p[:, None])}
        found |= {"circular_variance": family.circular_variance()}
        return {name: value[:, 0] for name, value in found.items()}

    one, none = jnp.ones_like(y), jnp.zeros_like(y)
    names = (*parameters, "y")
    directions = (
        {
            name: jnp.stack([one if name == other else none for other in names])
            for name in parameters
        },
        jnp.stack([none, none, one]),
    )
    values, slopes = jax.vmap(
        lambda direction: jax.jvp(outputs, (parameters, y), direction), out_axes=(None, 0)
    )(directions)
    slopes = {n: {key: v[i] for key, v in slopes.items()} for i, n in enumerate(names)}

    def finite_sum(parameters, y):
        found = outputs(parameters, y)
        return sum(jnp.sum(jnp.where(jnp.isfinite(v), v, 0)) for v in found.values())

    if y.dtype != jnp.float64:  # the same rules in float32
        return values, slopes, {}
    backward = jax.grad(finite_sum, argnums=(0, 1))(parameters, y)
    return values, slopes, {**backward[0], "y": backward[1]}


def run_at(y, loc, k, p=None):
    p = np.full_like(y, 0.3) if p is None else p
    parameters = {"loc": jnp.asarray(loc), "concentration": jnp.asarray(k)}
    return jax.tree.map(np.asarray, run(parameters, jnp.asarray(y), jnp.asarray(p)))


def points(seed, dtype=np.float64):
    """Targets within five standard deviations, locations up to the cut and across it."""
    rng = np.random.default_rng(seed)
    k = np.resize(CONCENTRATIONS, N).astype(dtype)
    loc = rng.uniform(-3.1, 3.1, N)
    loc[: N // 4] = np.sign(loc[: N // 4]) * (np.pi - 0.3 / np.sqrt(np.maximum(k[: N // 4], 1)))
    z = rng.uniform(-5, 5, N) / np.sqrt(np.maximum(k, 1))
    y = (loc + z + np.pi) % (2 * np.pi) - np.pi
    return np.clip(y, -3.1415925, 3.1415925).astype(dtype), loc.astype(dtype), k


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_values_and_slopes(dtype):
    eps = float(np.finfo(dtype).eps)
    y, loc, k = points(0, dtype)
    p = np.random.default_rng(1).uniform(1e-3, 1 - 1e-3, N).astype(dtype)
    found, slopes, reverse = run_at(y, loc, k, p)
    values, derivatives = exact(y, loc, k)
    # A last place of y or loc, or of pi where the distribution reaches over the cut, counts as much
    # as the slope in it says.
    place = 4 * eps * (values["cut"] > eps)
    steep = k * np.abs(np.sin((y - loc).astype(LD)))
    weight = 1 + np.abs(values["log_density"])
    tails = {
        name: 20 * eps * (values[name] * weight + values["point"] + values["cut"])
        for name in ("cdf", "survival")
    }
    for name in (*VALUES, "mean", "variance", "circular_variance"):
        assert found[name].dtype == dtype
        value, size = values[name], 20 * eps * (1 + np.abs(values[name]))
        if name in tails:
            size = tails[name]
        elif name in ("log_cdf", "log_survival"):
            tail = name.removeprefix("log_")
            size = size + tails[tail] / values[tail]
            value = np.where(size < 0.1, value, found[name])  # nothing but the cut's own rounding
        elif name == "log_density":
            size = size + place * steep
        elif name != "circular_variance":
            size = 20 * eps * (np.abs(value) + values["cut"] * (1 + np.pi**2))
        compare(found[name], value, size, name)
    for parameter, by_output in derivatives.items():
        for name, value in by_output.items():
            own = {"loc": 1 + np.sqrt(k), "concentration": 1 / (1 + k), "y": 1 + np.sqrt(k)}
            size = 40 * eps * (1 + weight) + place * np.sqrt(k)
            size = size * (np.abs(value) + own[parameter])
            compare(slopes[parameter][name], value, size, f"{name} in {parameter}")
        if not reverse:
            continue
        total = sum(np.where(np.isfinite(found[n]), s, 0) for n, s in slopes[parameter].items())
        rtol = 200 * eps
        np.testing.assert_allclose(reverse[parameter], total, rtol=rtol, atol=rtol * np.max(k))
    reached = exact(found["quantile"], loc, k)[0]
    gap = np.abs(reached["cdf"] - p)
    assert np.all(gap <= 20 * eps * (1 + reached["point"] * np.pi))


@DTYPES
def test_the_normaliser_of_any_concentration(dtype):
    k = np.array([0, 1e-6, 1e-3, 0.1, 1, 3, 7.9, 8.1, 20, 100, 1e4, 1e6, 1e8], dtype)
    with mpmath.workdps(40):
        at = [mpmath.mpf(float(v)) for v in k]
        ratio = [1 - mpmath.besseli(1, v) / mpmath.besseli(0, v) for v in at]
        log = [mpmath.log(mpmath.besseli(0, v)) - v for v in at]
        ratio, log = (np.array([float(v) for v in values]) for values in (ratio, log))
    value, slope = jax.jvp(circular.log_i0e, (jnp.asarray(k),), (jnp.ones(13, dtype),))
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(value, log, rtol=4 * eps, atol=4 * eps)
    np.testing.assert_allclose(slope, -ratio, rtol=30 * eps)


def test_edges_are_finite():
    ends = [-np.pi, np.pi, -np.inf, np.inf, 0.0, 100.0, np.nan, -3.0]
    y = np.repeat(ends, 8)
    k = np.tile(CONCENTRATIONS, 8)
    p = np.resize([0.0, 1.0, np.nan, -0.1, 1.1], N)
    for loc in (0.0, np.pi, -2.0):
        found, slopes, reverse = run_at(y, np.full(N, loc), k, p)
        nan, infinite = np.isnan(y), np.isinf(y)
        for name in VALUES:
            np.testing.assert_array_equal(np.isnan(found[name]), nan, err_msg=name)
        np.testing.assert_array_equal(found["log_density"][infinite], -np.inf)
        np.testing.assert_array_equal(found["cdf"][y == np.inf], 1)
        np.testing.assert_array_equal(found["cdf"][y == -np.inf], 0)
        np.testing.assert_array_equal(found["survival"][y == np.inf], 0)
        expected = np.resize([-np.pi, np.pi, np.nan, np.nan, np.nan], N)
        np.testing.assert_array_equal(found["quantile"], expected)
        for by_output in slopes.values():
            for name in ("log_density", "mean", "variance"):
                np.testing.assert_array_equal(by_output[name][infinite & (name[0] == "l")], 0)
            for name in VALUES:
                assert np.all(np.isfinite(by_output[name][~nan])), name
        for gradient in reverse.values():
            assert np.all(np.isfinite(gradient[~nan]))


def test_periodic_and_one_over_any_turn():
    y, loc, k = points(2)
    y, loc, k = y[k < 1e3], loc[k < 1e3], k[k < 1e3]
    family = VonMises(loc=jnp.asarray(loc)[:, None], concentration=jnp.asarray(k)[:, None])
    log_density = jax.jit(VonMises.marginal_log_prob)
    value = exact(y, loc, k)[0]["log_density"].astype(float)
    for turns in (-3, 0, 1, 50):
        moved = VonMises(loc=family.loc + 2 * np.pi * turns, concentration=family.concentration)
        for found in (
            log_density(family, jnp.asarray(y + 2 * np.pi * turns)[:, None]),
            log_density(moved, jnp.asarray(y)[:, None]),
        ):
            np.testing.assert_allclose(found[:, 0], value, rtol=1e-11, atol=1e-11)
    for start in (-np.pi, 0.0, 12.3, -400.0):
        # The trapezoidal rule is exact for a periodic analytic function.
        t = start + 2 * np.pi * np.arange(4000)[:, None, None] / 4000
        total = jnp.sum(jnp.exp(log_density(family, jnp.asarray(t))), axis=0) * (2 * np.pi / 4000)
        np.testing.assert_allclose(total, 1, rtol=1e-11)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_samples(dtype):
    # Their slopes are those of means of periodic functions: a sample that leaves at pi comes back
    # at -pi, which the mean of the representative would notice.
    loc = np.array([0.3, -3.1, 2.0, 1.0, 3.1, 0.0, -1.0, 2.5])
    family = VonMises(
        loc=jnp.asarray(loc, dtype)[:, None],
        concentration=jnp.asarray(CONCENTRATIONS, dtype)[:, None],
    )
    count = 8000

    @jax.jit
    def draw(family):
        def directions(family):
            y = family.sample(jax.random.key(3), (count,))
            angle = y - jax.lax.stop_gradient(family.loc) - 0.7
            return jnp.sum(jnp.mean(jnp.sin(angle), axis=0)), y

        return jax.grad(directions, has_aux=True)(family)

    gradient, draws = jax.tree.map(np.asarray, draw(family))
    assert draws.shape == (count, 8, 1)
    assert draws.dtype == dtype
    assert np.all(np.abs(draws) <= np.pi + 1e-6)
    k = CONCENTRATIONS.astype(float)
    for i in range(8):
        z = (draws[:, i, 0].astype(float) - float(family.loc[i, 0]) + np.pi) % (2 * np.pi) - np.pi
        cdf = stats.vonmises(max(k[i], 1e-9)).cdf
        if k[i] > 1e3:  # the normal is closer than any test of 8000 draws could tell
            cdf = stats.norm(scale=k[i] ** -0.5).cdf
        assert stats.kstest(cdf(z), "uniform").pvalue > 1e-4
    # E sin(Y - c) = A(k) sin(loc - c), A = I1 / I0, A' = 1 - A / k - A^2.
    resultant = special.ive(1, k) / special.ive(0, k)
    slope = np.where(k > 0, 1 - resultant / np.where(k > 0, k, 1) - resultant**2, 0.5)
    slope = np.where(k > 1e3, 0.5 / np.maximum(k, 1) ** 2, slope)
    noise = 5 / np.sqrt(count)
    np.testing.assert_allclose(gradient.loc[:, 0], resultant * np.cos(0.7), atol=noise)
    scaled = gradient.concentration[:, 0] * (1 + k)
    np.testing.assert_allclose(scaled, -slope * np.sin(0.7) * (1 + k), atol=3 * noise)


def mixture_of(seed, rows):
    rng = np.random.default_rng(seed)
    loc = rng.uniform(-3, 3, (rows, K, 2))
    k = np.exp(rng.uniform(np.log(0.1), np.log(40), (rows, K, 2)))
    logits = rng.normal(size=(rows, K))
    components = VonMises(loc=jnp.asarray(loc), concentration=jnp.asarray(k))
    mixture = jaxmdn.Mixture(logits=jnp.asarray(logits), components=components)
    return mixture, special.softmax(logits, -1), loc, k


def mixed_cdf(y, weights, loc, k):
    """``P(Y <= y)`` in [-pi, pi], of two dimensions, by SciPy's cdf on the whole line."""
    oracle = stats.vonmises(k, loc=loc)
    return np.sum(weights[..., None] * (oracle.cdf(y[..., None, :]) - oracle.cdf(-np.pi)), axis=-2)


def test_mixtures():
    rows = 8
    mixture, weights, loc, k = mixture_of(4, rows)
    rng = np.random.default_rng(5)
    y, p = rng.uniform(-np.pi, np.pi, (rows, 2)), rng.uniform(0.001, 0.999, (rows, 2))

    @jax.jit
    def mix(mixture, y, p):
        return mixing(mixture, y, p, jax.random.key(6), 4000) | rearranged(mixture, y)

    found = mix(mixture, jnp.asarray(y), jnp.asarray(p))
    each = stats.vonmises(k, loc=loc).logpdf(y[:, None])
    value = special.logsumexp(np.log(weights) + np.sum(each, -1), axis=-1)
    second = special.logsumexp(np.log(weights) + each[..., 1], axis=-1)
    expected = dict.fromkeys(("log_prob", "vmap", "merge", "swapped"), value)
    expected |= {"marginal": second, "conditional": value - second}
    expected |= {"single": np.sum(each[:, 0], -1), "cdf": mixed_cdf(y, weights, loc, k)}
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-10, atol=1e-11, err_msg=name)
    reached = mixed_cdf(np.asarray(found["quantile"]), weights, loc, k)
    np.testing.assert_allclose(reached, p, rtol=1e-9, atol=1e-11)
    levels = mixed_cdf(np.asarray(found["sample"]), weights, loc, k)
    for index in np.ndindex(rows, 2):
        assert stats.kstest(levels[:, *index], "uniform").pvalue > 1e-5


@partial(jax.jit)
def _quantiles(mixture, p):
    return jaxmdn.quantile(mixture, p)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_quantile_inverts_the_exact_cdf_of_random_mixtures(seed):
    # Eight mixtures of two dimensions an example: two hundred in all.
    mixture, weights, loc, k = mixture_of(seed, 8)
    p = np.random.default_rng(seed).uniform(1e-4, 1 - 1e-4, (8, 2))
    root = np.asarray(_quantiles(mixture, jnp.asarray(p)))
    np.testing.assert_allclose(mixed_cdf(root, weights, loc, k), p, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-8), (np.float32, 2e-5)])
def test_moments_are_recovered(dtype, rtol):
    mean = jnp.linspace(-3, 3, 12, dtype=dtype)[:, None]
    variance = jnp.asarray(np.geomspace(1e-7, 3.0, 12), dtype)[:, None]
    family = jax.jit(VonMises.from_moments)(mean, variance)
    assert family.dtype == dtype
    centred = VonMises(loc=jnp.zeros_like(mean), concentration=family.concentration)
    k = np.asarray(family.concentration[:, 0], float)
    own = exact(np.zeros(12), np.zeros(12), k)[0]["variance"].astype(float)
    np.testing.assert_allclose(own, variance[:, 0], rtol=rtol)
    np.testing.assert_allclose(centred.variance(), variance, rtol=rtol)
    np.testing.assert_allclose(family.circular_mean(), mean, rtol=1e-6)
