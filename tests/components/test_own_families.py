"""Families that a user defines, by public names alone: one output at a time, and two jointly."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from own_families import Gumbel, Lomax
from scipy import stats

import jaxmdn
from jaxmdn.components import Density, family, real, unit
from jaxmdn.heads.base import from_config, to_config


@family
class Pair(Density):
    """Two normal outputs of unit scale with a correlation: one family, two outputs."""

    loc: jax.Array = real()
    share: jax.Array = unit(rank=0)  # the correlation is 2 share - 1

    event_size = 2

    def log_prob(self, y):
        e, rho = y - self.loc, 2 * self.share - 1
        rest = 1 - rho**2
        quadratic = (e[..., 0] ** 2 - 2 * rho * e[..., 0] * e[..., 1] + e[..., 1] ** 2) / rest
        return -0.5 * (quadratic + jnp.log(rest)) - jnp.log(2 * jnp.pi)

    def sample(self, key, shape=()):
        z = jax.random.normal(key, (*shape, *self.batch_shape, 2))
        rho = 2 * self.share - 1
        second = rho * z[..., 0] + jnp.sqrt(1 - rho**2) * z[..., 1]
        return self.loc + jnp.stack([z[..., 0], second], axis=-1)


@jax.jit
def everything(density, y, p):
    """All that follows from a log-density, with derivatives in ``y`` and in the parameters."""

    def values(density, y):
        names = ("cdf", "survival", "log_cdf", "log_survival")
        return {name: getattr(density, name)(y) for name in names}

    slopes = jax.jvp(lambda y: values(density, y), (y,), (jnp.ones_like(y),))[1]
    ones = jax.tree.map(jnp.ones_like, density)
    moved = jax.jvp(lambda d: values(d, y), (density,), (ones,))[1]
    quantile = jax.jvp(density.quantile, (p,), (jnp.ones_like(p),))
    return values(density, y), slopes, moved, quantile, density.mean(), density.variance()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_follows_from_a_log_density(dtype):
    rng = np.random.default_rng(0)
    loc = rng.normal(size=(3, 2)) * [1, 1e4]
    scale = np.exp(rng.normal(size=(3, 2)))
    oracle = stats.gumbel_r(loc, scale)
    p = rng.uniform(size=(40, 1, 1)) ** 6 * np.ones((3, 2))
    p[20:] = np.minimum(1 - p[:20], 1 - 4 * np.finfo(dtype).eps)
    y = oracle.ppf(p).astype(dtype)
    density = Gumbel(loc=jnp.asarray(loc, dtype), scale=jnp.asarray(scale, dtype))
    result = everything(density, y, p.astype(dtype))
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(result))
    result = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), result)
    found, slopes, moved, (q, dq), mean, variance = result
    loc, scale = np.asarray(density.loc, np.float64), np.asarray(density.scale, np.float64)
    oracle, y = stats.gumbel_r(loc, scale), y.astype(np.float64)
    eps = np.finfo(dtype).eps
    # The condition of each tail: relative change per unit of z, times the rounding of z.
    z = (y - loc) / scale
    room = 60 * eps * (1 + np.abs(z) + np.abs(np.exp(-z)))
    room = room * (1 + np.abs(loc / scale))
    assert np.all(np.abs(found["cdf"] / oracle.cdf(y) - 1) <= room)
    assert np.all(np.abs(found["survival"] / oracle.sf(y) - 1) <= room)
    assert np.all(np.abs(found["log_survival"] - oracle.logsf(y)) <= room)
    assert np.all(np.abs(slopes["cdf"] / oracle.pdf(y) - 1) <= room)
    # d F / d loc = -f, d F / d scale = -z f: along ones the sum.
    assert np.all(np.abs(moved["cdf"] + (1 + z) * oracle.pdf(y)) <= room * (1 + np.abs(z)))
    level = p.astype(dtype).astype(np.float64)
    near = np.minimum(level, 1 - level)
    back = np.where(level > 0.5, oracle.sf(q) / (1 - level), oracle.cdf(q) / level)
    assert np.all(np.abs(back - 1) <= room + 4 * eps / near * (level > 0.5))
    np.testing.assert_allclose(dq * oracle.pdf(q), 1, rtol=2e3 * eps * np.max(1 + abs(loc / scale)))
    # The density itself is as good as z is.
    unsure = 40 * eps * (1 + np.abs(loc / scale))
    assert np.all(np.abs(mean - oracle.mean()) <= unsure * scale)
    assert np.all(np.abs(variance / oracle.var() - 1) <= unsure)


def test_regions_of_a_family_without_a_reflection():
    """Closed under shift and positive scale: tails come from the survival function alone."""
    loc, scale = np.array([0.0, 6.0]), np.array([1.0, 0.5])
    family = Gumbel(loc=jnp.asarray(loc)[:, None], scale=jnp.asarray(scale)[:, None])
    mixture = jaxmdn.Mixture(logits=jnp.zeros(2), components=family)
    oracle, share = stats.gumbel_r(loc, scale), np.full(2, 0.5)
    location, height = jaxmdn.modes(mixture)
    np.testing.assert_allclose(np.sort(location[:2, 0]), [0.0, 6.0], atol=2e-2)
    np.testing.assert_allclose(np.exp(height[:2]), oracle.pdf(location[:2]) @ share, rtol=1e-9)
    level = 0.9
    region = jaxmdn.hdr_intervals(mixture, level)
    lower, upper = (np.asarray(v)[np.isfinite(v)][:, None] for v in region)
    assert len(lower) == 2
    reached = np.sum((oracle.cdf(upper) - oracle.cdf(lower)) @ share)
    assert abs(reached - level) < 1e-8
    heights = np.log(oracle.pdf(np.concatenate([lower, upper])) @ share)
    assert np.ptp(heights) < 1e-7
    far = float(jaxmdn.quantile(mixture, 1e-20, upper=True)[0])
    assert oracle.sf(far) @ share == pytest.approx(1e-20, rel=1e-9)
    moved = jaxmdn.affine(mixture, 2.0, 3.0)
    y = jnp.asarray([[1.0], [7.0]])
    expected = jaxmdn.log_prob(mixture, y) - np.log(3)
    np.testing.assert_allclose(jaxmdn.log_prob(moved, 2 + 3 * y), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="affine: Gumbel takes a positive scale only, got -1"):
        jaxmdn.affine(mixture, 0.0, -1.0)


def test_a_power_tail_and_the_edge_of_the_support():
    density = Lomax(scale=jnp.full((1, 1), 2.0), shape=jnp.full((1, 1), 3.0))
    oracle = stats.lomax(3.0, scale=2.0)
    y = np.geomspace(1e-12, 1e6, 40)[:, None, None]
    p = np.linspace(0.01, 0.99, 40)[:, None, None]
    found, _, _, (q, _), mean, _ = everything(density, jnp.asarray(y), jnp.asarray(p))
    np.testing.assert_allclose(found["cdf"], oracle.cdf(y), rtol=1e-11)
    np.testing.assert_allclose(found["survival"], oracle.sf(y), rtol=1e-9)
    np.testing.assert_allclose(q, oracle.ppf(p), rtol=1e-11)
    np.testing.assert_allclose(mean, oracle.mean(), rtol=1e-9)
    edge = jnp.asarray([-1.0, 0.0, np.inf, np.nan])[:, None, None]
    found = everything(density, edge, jnp.full_like(edge, 0.5))[0]
    np.testing.assert_array_equal(found["cdf"][:, 0, 0], [0, 0, 1, np.nan])
    np.testing.assert_array_equal(found["survival"][:, 0, 0], [1, 1, 0, np.nan])


def test_heads_know_what_a_class_declares():
    head = jaxmdn.FactorizedHead((Gumbel, "gamma", Pair, "normal"), 3)
    assert head.event_dim == 5
    assert head.num_outputs == 3 * (1 + 2 + 2 + 3 + 2)
    assert from_config(json.loads(json.dumps(to_config(head)))) == head
    assert "gumbel" in jaxmdn.heads.family_names()
    config = to_config(head)
    config["families"][0]["family"] = "unknown"
    with pytest.raises(ValueError, match=r"'unknown' is not known here; .* import that module"):
        from_config(config)
    raw = jnp.asarray(np.random.default_rng(1).normal(size=(4, head.num_outputs)))
    mixture = head(raw)
    np.testing.assert_allclose(head(head.inverse(mixture)).logits, mixture.logits, atol=1e-12)
    np.testing.assert_allclose(head.inverse(mixture), raw - raw[:, :3].mean(1) @ np.zeros((4, 1)))


@pytest.mark.usefixtures("as_users_run")
def test_they_train():
    rng = np.random.default_rng(2)
    x = rng.uniform(-1, 1, size=(600, 1)).astype(np.float32)
    noise = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], size=600)
    y = np.column_stack([stats.gumbel_r.rvs(5e4 + 1e3 * x[:, 0], 500, random_state=3), x + noise])
    head = jaxmdn.FactorizedHead((Gumbel, Pair), 1)
    model = jaxmdn.nn.MDN(1, head, hidden_features=(8,), rngs=nnx.Rngs(0))
    result = jaxmdn.train.fit(model, x[:500], y[:500], num_epochs=40, progress=False)
    exact = stats.gumbel_r.logpdf(y[500:, 0], 5e4 + 1e3 * x[500:, 0], 500)
    exact += stats.multivariate_normal.logpdf(y[500:, 1:] - x[500:], [0, 0], [[1, 0.8], [0.8, 1]])
    found = np.asarray(result.log_prob(x[500:], y[500:].astype(np.float32)))
    assert np.mean(exact - found) < 0.1
    assert jaxmdn.sample(jax.random.key(0), result.predict(x[:5])).shape == (5, 3)
