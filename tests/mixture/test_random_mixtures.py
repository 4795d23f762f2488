"""Random mixtures for every question: against SciPy, dense algebra and quadrature.

An example of hypothesis's is a batch of twenty, so that the nightly run sees twenty thousand. They
differ in how far apart the components lie, how unequal their weights are (some next to nothing) and
how unequal their widths. What is not here has its own beside its other tests: quantiles, modes,
highest-density regions, products, entropies, divergences and the CRPS of normals.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

import jaxmdn
from jaxmdn import scoring
from jaxmdn.components import FullNormal, Laplace, Logistic, LowRankNormal, Normal, StudentT

N, K, D = 20, 4, 3
SUBSETS = [(0,), (2, 0), (1, 2)]


def normals(rng, covariance, spread, width):
    """Components about ``spread`` apart, their widths factors of ``exp(width)``."""

    def scales(*shape):
        return jnp.asarray(np.exp(width * rng.normal(size=(N, K, *shape))))

    loc = jnp.asarray(spread * rng.normal(size=(N, K, D)))
    if covariance == "full":
        factor = jnp.asarray(np.tril(rng.normal(size=(N, K, D, D)), -1))
        return FullNormal(loc=loc, whitening_tril=factor + scales(D)[..., None] * jnp.eye(D))
    if covariance == "low_rank":
        factor = jnp.asarray(rng.normal(size=(N, K, D, 2)))
        return LowRankNormal(loc=loc, factor=factor, scale=scales(D))
    return Normal(loc=loc, scale=scales(1 if covariance == "isotropic" else D))


class Case(NamedTuple):
    """A batch of mixtures, their dense form, targets near and far, and the generator."""

    mixture: jaxmdn.Mixture
    dense: oracles.Dense
    y: jax.Array
    rng: np.random.Generator

    def __repr__(self):  # hypothesis writes every example down, and refuses thousands of numbers
        return f"Case({type(self.mixture.components).__name__}, y[0] = {self.y[0]})"


@st.composite
def cases(draw, covariances=oracles.COVARIANCES, tilts=(0.1, 3.0, 10.0)):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread, tilt, width = (
        draw(st.sampled_from(sizes)) for sizes in ((0.1, 1.0, 30.0), tilts, (0.1, 0.5, 1.0))
    )
    components = normals(rng, draw(st.sampled_from(covariances)), spread, width)
    logits = jnp.asarray(tilt * rng.normal(size=(N, K)))
    mixture = jaxmdn.Mixture(logits=logits, components=components)
    y = components.loc[:, 0] + jnp.asarray(2.0 * rng.standard_t(4, size=(N, D)))
    return Case(mixture, oracles.of_mixture(mixture), y, rng)


def compare(found, expected, rtol=1e-9, atol=1e-10):
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)


def compare_densities(mixture, dense):
    found = oracles.of_mixture(mixture)
    compare(found.weights, dense.weights)
    compare(found.loc, dense.loc, atol=1e-9)
    # A factor's rounding is a covariance's times its condition, however it is computed.
    condition = np.linalg.cond(dense.covariances).max()
    size = np.abs(dense.covariances).max(axis=(-2, -1), keepdims=True)
    error = np.abs(found.covariances - dense.covariances) / size
    assert error.max() < 1e-9 + 10 * np.finfo(float).eps * condition


# Distribution functions


@jax.jit
def distribution(mixture, y):
    functions = jaxmdn.cdf, jaxmdn.survival, jaxmdn.log_cdf, jaxmdn.log_survival
    return [function(mixture, y) for function in functions]


@given(cases())
def test_distribution_functions(case):
    mixture, dense, y, _ = case
    scale = np.sqrt(np.diagonal(dense.covariances, axis1=-2, axis2=-1))
    z = (np.asarray(y)[:, None] - dense.loc) / scale
    logs = [
        special.logsumexp(special.log_ndtr(s * z), 1, dense.weights[..., None]) for s in (1, -1)
    ]
    below, above, log_below, log_above = distribution(mixture, y)
    compare(below, np.exp(logs[0]), rtol=1e-11, atol=1e-300)
    compare(above, np.exp(logs[1]), rtol=1e-11, atol=1e-300)
    # log_ndtr's series, where it takes over, is worth 1e-9.
    compare(log_below, logs[0], rtol=1e-8, atol=1e-14)
    compare(log_above, logs[1], rtol=1e-8, atol=1e-14)


# Densities from densities


def dense_marginal(dense, dims):
    dims = list(dims)
    return oracles.Dense(
        dense.weights, dense.loc[..., dims], dense.covariances[..., dims, :][..., dims]
    )


def dense_conditional(dense, dims, values):
    """Blocks of the covariances (Bishop 2006, eq. 2.81-2.82), for all rows at once."""
    rest, dims = [d for d in range(dense.loc.shape[-1]) if d not in dims], list(dims)
    given_, cross = (dense.covariances[..., dims, :][..., part] for part in (dims, rest))
    error = values[:, None] - dense.loc[..., dims]
    gain = np.linalg.solve(given_, cross)  # [N, K, dims, rest]
    log_density = -0.5 * (
        np.sum(error * np.linalg.solve(given_, error[..., None])[..., 0], axis=-1)
        + np.linalg.slogdet(2 * np.pi * given_)[1]
    )
    return oracles.Dense(
        special.softmax(np.log(dense.weights) + log_density, axis=-1),
        dense.loc[..., rest] + np.einsum("nkdr,nkd->nkr", gain, error),
        dense.covariances[..., rest, :][..., rest] - np.swapaxes(cross, -1, -2) @ gain,
    )


marginals = jax.jit(lambda mixture: [jaxmdn.marginal(mixture, dims) for dims in SUBSETS])
conditionals = jax.jit(
    lambda mixture, y: [jaxmdn.condition(mixture, dims, y[..., list(dims)]) for dims in SUBSETS]
)


@given(cases())
def test_marginals_and_conditionals(case):
    mixture, dense, y, _ = case
    found = zip(SUBSETS, marginals(mixture), conditionals(mixture, y), strict=True)
    for dims, marginal, conditional in found:
        compare_densities(marginal, dense_marginal(dense, dims))
        expected = dense_conditional(dense, dims, np.asarray(y)[:, list(dims)])
        compare_densities(conditional, expected)


@given(cases())
def test_rosenblatt_and_pit(case):
    mixture, dense, y, _ = case
    values, expected = np.asarray(y), [dense_marginal(dense, (0,)).cdf(y[:, :1])]
    for d in range(1, D):
        given_first = dense_conditional(
            dense_marginal(dense, range(d + 1)), range(d), values[:, :d]
        )
        expected.append(given_first.cdf(values[:, d : d + 1]))
    compare(jaxmdn.calibration.rosenblatt(mixture, y), np.concatenate(expected, axis=-1), rtol=1e-8)
    compare(jaxmdn.pit(mixture, y), dense.cdf(y))


affine = jax.jit(jaxmdn.affine)


@given(cases(), st.sampled_from([2, 3]))
def test_linear_maps(case, rows):
    mixture, dense, _, rng = case
    matrix, shift = rng.normal(size=(rows, D)), rng.normal(size=rows)
    loc, covariances = shift + dense.loc @ matrix.T, matrix @ dense.covariances @ matrix.T
    compare_densities(
        affine(mixture, shift, matrix), oracles.Dense(dense.weights, loc, covariances)
    )


temper = jax.jit(
    lambda mixture, weight, scale: jaxmdn.temper(
        mixture, weight_temperature=weight, scale_temperature=scale
    )
)


@given(cases(), st.floats(0.2, 5.0), st.floats(0.01, 100.0))
def test_temperatures(case, weight, scale):
    mixture, dense, _, _ = case
    weights = special.softmax(np.log(dense.weights) / weight, axis=-1)
    expected = oracles.Dense(weights, dense.loc, scale * dense.covariances)
    compare_densities(temper(mixture, jnp.asarray(weight), jnp.asarray(scale)), expected)


@given(cases())
def test_responsibilities_and_what_they_tell(case):
    mixture, dense, y, _ = case
    error = np.asarray(y)[:, None] - dense.loc
    solved = np.linalg.solve(dense.covariances, error[..., None])[..., 0]
    log_shares = np.log(dense.weights) - 0.5 * (
        np.sum(error * solved, axis=-1) + np.linalg.slogdet(dense.covariances)[1]
    )
    shares = special.softmax(log_shares, axis=-1)
    compare(jaxmdn.responsibilities(mixture, y), shares)
    for weights, found in (
        (dense.weights, jaxmdn.effective_num_components(mixture)),
        (shares, jaxmdn.effective_num_components(mixture, y)),
    ):
        compare(found, np.exp(np.sum(special.entr(weights), axis=-1)))
    found = jaxmdn.is_dead(mixture, threshold=0.01)
    np.testing.assert_array_equal(found, np.all(dense.weights < 0.01, axis=0))


# Scores


def length(distance, scale, power, size):
    """``E |X|^power`` of a normal vector at a distance from zero, by Kummer's function."""
    gammas = np.exp(special.gammaln((size + power) / 2) - special.gammaln(size / 2))
    kummer = special.hyp1f1(-power / 2, size / 2, -(distance**2) / (2 * scale**2))
    return (np.sqrt(2) * scale) ** power * gammas * kummer


def of_many_keys(score):
    keys = jax.random.split(jax.random.key(0), 64)
    return jax.jit(
        lambda m, y: jax.lax.map(lambda key: score(key, m, y, num_samples=16).value, keys)
    )


def agrees_on_average(values, expected):
    """No row is further from the exact value than six standard errors: one in 5e8 is."""
    error = np.std(values, axis=0, ddof=1) / np.sqrt(len(values))
    assert np.all(np.abs(np.mean(values, axis=0) - expected) < 6.5 * error)


energies, variograms = map(of_many_keys, (scoring.energy_score, scoring.variogram_score))


@given(cases(covariances=("isotropic",), tilts=(0.1, 0.5)))
def test_energy_scores(case):
    mixture, dense, y, _ = case
    w, scale = dense.weights, np.sqrt(dense.covariances[..., 0, 0])
    near = length(np.linalg.norm(y[:, None] - dense.loc, axis=-1), scale, 1, D)
    gaps = np.linalg.norm(dense.loc[:, :, None] - dense.loc[:, None], axis=-1)
    pairs = length(gaps, np.hypot(scale[:, :, None], scale[:, None]), 1, D)
    expected = np.einsum("nk,nk->n", w, near) - np.einsum("nj,nk,njk->n", w, w, pairs) / 2
    agrees_on_average(energies(mixture, y), expected)


@given(cases(tilts=(0.1, 0.5)))
def test_variogram_scores(case):
    mixture, dense, y, _ = case
    expected = 0.0
    for i, j in ((0, 1), (0, 2), (1, 2)):
        contrast = np.eye(D)[i] - np.eye(D)[j]
        scale = np.sqrt(np.einsum("i,nkij,j->nk", contrast, dense.covariances, contrast))
        moments = length(np.abs(dense.loc @ contrast), scale, 0.5, 1)
        mean = np.sum(dense.weights * moments, axis=-1)
        expected = expected + 2 * (np.abs(np.asarray(y) @ contrast) ** 0.5 - mean) ** 2
    agrees_on_average(variograms(mixture, y), expected)


def bisected(dense, p):
    """Quantiles of each dimension by 80 halvings of the exact cdf's bracket."""
    spread = 40 * np.sqrt(np.max(dense.covariances, axis=(-3, -2, -1)))[:, None]
    low, high = dense.loc.min(axis=1) - spread, dense.loc.max(axis=1) + spread
    for _ in range(80):
        middle = (low + high) / 2
        left = dense.cdf(middle) < p
        low, high = np.where(left, middle, low), np.where(left, high, middle)
    return (low + high) / 2


@given(cases(), st.floats(0.05, 0.95))
def test_scores_and_coverage_of_quantiles(case, level):
    mixture, dense, y, _ = case
    levels = (1 - level) / 2, (1 + level) / 2
    low, high = (bisected(dense, p) for p in levels)
    fine = np.maximum(low - y, 0) + np.maximum(y - high, 0)
    # A quantile between modes far apart is known as well as the cdf is: hence the 1e-6.
    compare(
        scoring.interval_score(mixture, y, level), high - low + 2 / (1 - level) * fine, atol=1e-6
    )
    expected = np.where(y < low, 1 - levels[0], levels[0]) * np.abs(y - low)
    compare(scoring.pinball_score(mixture, y, levels[0]), expected, atol=1e-6)
    share = jaxmdn.calibration.coverage(mixture, y, (level,))[0]
    inside = np.asarray((y >= low) & (y <= high))
    np.testing.assert_allclose(share, np.mean(inside, axis=0), rtol=1e-6)


FAMILIES = {
    "laplace": (Laplace, stats.laplace),
    "logistic": (Logistic, stats.logistic),
    "student": (StudentT, stats.t),
}
NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)


def crps_by_panels(weights, components, y):
    """``int (F(t) - 1[t >= y])^2 dt`` by Gauss and Legendre, between the points where F turns."""
    steps = np.sinh(np.linspace(-18, 18, 73))  # to 3e7 scales away: Student tails
    loc, scale = components.kwds["loc"], components.kwds["scale"]
    cuts = (loc[..., None] + scale[..., None] * steps).reshape(len(y), -1)
    cuts = np.sort(np.concatenate([cuts, y], axis=-1))
    half, middle = np.diff(cuts) / 2, (cuts[:, 1:] + cuts[:, :-1]) / 2
    t = (middle[..., None] + half[..., None] * NODES)[:, None]  # [N, 1, panels, nodes]
    kwds = {name: x[..., None, None] for name, x in components.kwds.items()}
    w = weights[..., None, None]
    below = np.sum(w * components.dist.cdf(t, **kwds), axis=1)
    above = np.sum(w * components.dist.sf(t, **kwds), axis=1)
    square = np.where(t[:, 0] < y[..., None], below, above) ** 2
    return np.sum(half * (square @ WEIGHTS), axis=-1, keepdims=True)


@pytest.mark.parametrize("name", FAMILIES)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.1, 1.0, 30.0]),
    width=st.sampled_from([0.1, 1.0]),
)
def test_crps_of_other_families(name, seed, spread, width):
    rng = np.random.default_rng(seed)
    parameters = {
        "loc": spread * rng.normal(size=(N, K)),
        "scale": np.exp(width * rng.normal(size=(N, K))),
    }
    if name == "student":
        parameters["df"] = rng.uniform(2.5, 30.0, (N, K))
    family, exact = FAMILIES[name]
    components = family(**{key: jnp.asarray(x)[..., None] for key, x in parameters.items()})
    logits, y = 2 * rng.normal(size=(N, K)), 2 * spread * rng.normal(size=(N, 1))
    found = jaxmdn.crps(jaxmdn.Mixture(logits=jnp.asarray(logits), components=components), y)
    expected = crps_by_panels(special.softmax(logits, axis=-1), exact(**parameters), y)
    compare(found, expected, rtol=1e-8, atol=1e-9)
