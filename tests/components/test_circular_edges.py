"""The von Mises family at the cut, over any turn, and its samples of any concentration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BY_NAME
from contract import DTYPES, ROWS, TAILS, run
from scipy import special, stats

from jaxmdn.components import VonMises

CASE = BY_NAME["von-mises"]
CONCENTRATIONS = np.array([0, 1e-3, 0.3, 1, 4, 30, 1e4, 1e8])


def test_at_the_cut():
    y = np.repeat([-np.pi, np.pi, 0.0, 100.0, -3.0, 3.1, 7.0, -50.0], 8)[:, None]
    k = np.tile(CONCENTRATIONS, 8).astype(float)[:, None]
    for loc in (0.0, np.pi, -2.0):
        values, slopes, _, gradient, _ = run(CASE, {"loc": 0 * k + loc, "concentration": k}, y)
        for name in ("log_prob", *TAILS):
            assert not np.isnan(values[name]).any(), name
            for by_output in slopes.values():
                assert np.all(np.isfinite(by_output[name])), name
        for total in gradient.values():
            assert np.all(np.isfinite(total))


def test_periodic():
    rng = np.random.default_rng(2)
    k = np.resize(CONCENTRATIONS[:6], (ROWS, 1)).astype(float)
    loc = rng.uniform(-3.1, 3.1, (ROWS, 1))
    y = np.clip(loc + rng.normal(size=(ROWS, 1)) / np.sqrt(np.maximum(k, 1)), -3.14, 3.14)
    value = CASE.oracle.exact({"loc": loc, "concentration": k}, y).values["log_prob"].astype(float)
    for turns in (-3, 0, 1, 50):
        for moved in ((turns, 0), (0, turns)):
            shifted = {"loc": loc + 2 * np.pi * moved[1], "concentration": k}
            found = run(CASE, shifted, y + 2 * np.pi * moved[0])[0]["log_prob"]
            np.testing.assert_allclose(found, value, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", DTYPES)
def test_moments_are_recovered(dtype):
    """The variance is that of ``y - mean`` in ``[-pi, pi]``."""
    mean, variance = np.resize(np.linspace(-3, 3, 12), (ROWS, 1)), np.geomspace(1e-7, 3.0, ROWS)
    parameters = CASE.parameters(1, dtype=dtype)
    moments = mean.astype(dtype), variance[:, None].astype(dtype)
    leaves = run(CASE, parameters, mean.astype(dtype), moments=moments)[2]["member"][0]
    assert {leaf.dtype for leaf in leaves} == {np.dtype(dtype)}
    loc, k = leaves
    rtol = 1e-8 if dtype == np.float64 else 2e-5
    centred = {"loc": np.zeros((ROWS, 1)), "concentration": k.astype(float)}
    own = CASE.oracle.exact(centred, centred["loc"]).values["variance"].astype(float)
    np.testing.assert_allclose(own, moments[1], rtol=rtol)
    np.testing.assert_allclose(loc, moments[0], rtol=1e-6)  # of less than a turn


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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_angles_beyond_the_dtype_have_probabilities(dtype):
    """An angle of 1e12 in float32 is known to 65,536 radians: any answer will do that is one."""
    y = np.array([1e6, -1e9, 3e12, -1e15, 1e17, 1e30], dtype)
    density = VonMises(
        loc=jnp.full((6, 1), 2.0, dtype),
        concentration=jnp.asarray([[0], [0.3], [4], [1e4], [1e7], [1]], dtype),
    )
    both = jax.jit(
        lambda d, y: (d.cdf(y), d.survival(y), jax.vmap(jax.grad(lambda y: d[0].cdf(y).sum()))(y))
    )
    below, above, slopes = both(density, y[:, None])
    assert np.all((below >= 0) & (below <= 1))
    np.testing.assert_allclose(below + above, 1, atol=1e-6)
    assert np.all(np.isfinite(slopes))
