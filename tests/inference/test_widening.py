"""Widening: scales against dense linear algebra, densities against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxmdn
from jaxmdn import components
from jaxmdn.inference import widen

RNG = np.random.default_rng(0)
FACTOR, NOISE = 1.7, np.array([0.3, 0.0, 2.0])


def mixture_of(family):
    logits = jnp.asarray(RNG.normal(size=(4, 2)))
    return jaxmdn.Mixture(logits=logits, components=family)


def normals():
    loc = jnp.asarray(RNG.normal(size=(4, 2, 3)))
    scale = jnp.asarray(RNG.uniform(0.5, 2.0, (4, 2, 3)))
    root = np.tril(RNG.normal(size=(4, 2, 3, 3))) + 3 * np.eye(3)
    full = components.FullNormal.from_scale_tril(loc, jnp.asarray(root))
    factor = jnp.asarray(RNG.normal(size=(4, 2, 3, 2)))
    parts = (
        components.Normal(loc=loc[..., :1], scale=scale[..., :1]),
        components.Normal(loc=loc[..., 1:], scale=scale[..., 1:]),
    )
    return {
        "diagonal": components.Normal(loc=loc, scale=scale),
        "tied": components.Normal(loc=loc, scale=scale[:, :1]),
        "full": full,
        "low rank": components.LowRankNormal(loc=loc, factor=factor, scale=scale),
        "independent": components.Independent(parts=parts, dims=((2,), (0, 1))),
    }


@pytest.mark.parametrize("name", list(normals()))
def test_normals_are_scaled_and_convolved(name):
    """``T^2 C + diag(c^2)``, by dense arithmetic; locations and weights stay."""
    mixture = mixture_of(normals()[name])
    wide = widen(mixture, FACTOR, jnp.asarray(NOISE))
    expected = FACTOR**2 * np.asarray(mixture.components.covariance()) + np.diag(NOISE**2)
    np.testing.assert_allclose(wide.components.covariance(), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(wide.components.mean(), mixture.components.mean())
    np.testing.assert_array_equal(wide.logits, mixture.logits)


def test_factors_and_noise_for_each_mixture():
    """Student-t densities against SciPy, in both dtypes, with the slopes in factor and noise."""
    for dtype, rtol in ((jnp.float32, 2e-6), (jnp.float64, 1e-13)):
        loc, scale = (jnp.asarray(RNG.uniform(0.5, 2.0, (4, 2, 1)), dtype) for _ in range(2))
        family = components.StudentT(loc=loc, scale=scale, df=jnp.full((4, 1, 1), 5.0, dtype))
        factor, noise = jnp.asarray([0.5, 1, 2, 4], dtype), jnp.full((4, 1), 0.25, dtype)
        logits = jnp.zeros((4, 2), dtype)
        y = jnp.ones((4, 1), dtype)

        def density(factor, noise, logits=logits, family=family, y=y):
            return jaxmdn.log_prob(
                widen(jaxmdn.Mixture(logits=logits, components=family), factor, noise), y
            )

        wide = np.hypot(np.asarray(factor, float)[:, None] * np.asarray(scale, float)[..., 0], 0.25)
        each = stats.t.pdf(1.0, 5.0, np.asarray(loc, float)[..., 0], wide)
        value, slopes = jax.vjp(density, factor, noise)
        assert value.dtype == dtype
        np.testing.assert_allclose(value, np.log(each.mean(axis=1)), rtol=rtol, atol=rtol)
        # d log t / d scale = (df (z^2 - 1) / (df + z^2)) / scale, and the chain rule by hand.
        z = (1.0 - np.asarray(loc, float)[..., 0]) / wide
        slope = each * (5 * (z**2 - 1) / (5 + z**2)) / wide / each.sum(axis=1, keepdims=True)
        own = np.asarray(scale, float)[..., 0]
        by_factor = (slope * np.asarray(factor, float)[:, None] * own**2 / wide).sum(axis=1)
        found_factor, found_noise = slopes(jnp.ones(4, dtype))
        np.testing.assert_allclose(found_factor, by_factor, rtol=20 * rtol, atol=20 * rtol)
        np.testing.assert_allclose(
            found_noise[:, 0], (slope * 0.25 / wide).sum(axis=1), rtol=20 * rtol, atol=20 * rtol
        )


def test_a_floor_of_zero_is_differentiable():
    """Noise of exactly zero: the slope in it is zero, and that of the scale one."""
    mixture = jaxmdn.Mixture(
        logits=jnp.zeros(1),
        components=components.Normal(loc=jnp.zeros((1, 1)), scale=jnp.ones((1, 1))),
    )
    slopes = jax.grad(lambda t, c: widen(mixture, t, c).components.scale.sum(), (0, 1))(1.0, 0.0)
    assert [float(slope) for slope in slopes] == [1.0, 0.0]


@pytest.mark.parametrize("family", ["gamma", "poisson", "beta"])
def test_families_without_a_scale_are_refused(family):
    head = jaxmdn.FactorizedHead(family, 2)
    with pytest.raises(TypeError, match=r"widen: expected .* location and a scale"):
        widen(head(jnp.zeros(head.num_outputs)), 2.0)


def test_noise_beside_small_and_large_scales_in_float32():
    """``W' L' = 1`` for the Cholesky factor of ``C + n^2`` in float64; the determinant's slope."""
    axes = np.linalg.qr(RNG.normal(size=(4, 4)))[0]
    covariance = axes @ np.diag(np.square([1.0, 0.1, 0.01, 0.001])) @ axes.T
    whitening = np.float32(np.linalg.inv(np.linalg.cholesky(covariance)))
    noise = np.float32([1e-6, 1e-3, 1.0, 1e3])
    normal = components.FullNormal(
        loc=jnp.zeros((1, 4), jnp.float32), whitening_tril=jnp.asarray(whitening)[None]
    )
    mixture = jaxmdn.Mixture(logits=jnp.zeros(1, jnp.float32), components=normal)

    def log_determinant(noise):
        new = widen(mixture, 1.0, jnp.full(4, noise)).components.whitening_tril[0]
        return jnp.sum(jnp.log(jnp.diagonal(new))), new

    slopes, found = jax.jit(jax.vmap(jax.grad(log_determinant, has_aux=True)))(noise)
    inverse = np.linalg.inv(np.float64(whitening))
    for n, slope, new in zip(np.float64(noise), slopes, found, strict=True):
        exact = inverse @ inverse.T + n * n * np.eye(4)
        product = np.float64(new) @ np.linalg.cholesky(exact)
        np.testing.assert_allclose(product, np.eye(4), atol=2e-5)
        np.testing.assert_allclose(slope, -n * np.trace(np.linalg.inv(exact)), rtol=1e-3)
