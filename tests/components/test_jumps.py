"""Randomised transforms: cdfs with jumps, in one dimension of several, and given the parents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special, stats

import jaxmdn
from jaxmdn.heads import CategoricalHead, FactorizedHead, Family, IndependentHead, NormalHead

RNG = np.random.default_rng(20261125)
KEY = jax.random.key(3)
KINDS = (
    "normal",
    "poisson",
    Family("hurdle", base="gamma"),
    Family("discretized_logistic", lower=-1.0, upper=1.0, num_bins=9),
    Family("hurdle", base="poisson"),
)
JUMPS = (False, True, True, True, True)


def masses(mixture, y):
    """``P(Y < y)`` and ``P(Y = y)`` of ``KINDS`` by SciPy, ``[N, D]`` each."""
    weights = special.softmax(np.asarray(mixture.logits), -1)
    normal, poisson, gamma, logistic, counts = mixture.components.parts

    def numbers(array):
        return np.asarray(array)[..., 0]

    below, at = np.zeros((*y.shape[:1], 3, 5)), np.zeros((*y.shape[:1], 3, 5))
    below[..., 0] = stats.norm(numbers(normal.loc), numbers(normal.scale)).cdf(y[:, :1])
    rate = stats.poisson(numbers(poisson.rate))
    below[..., 1], at[..., 1] = rate.cdf(y[:, 1:2] - 1), rate.pmf(y[:, 1:2])
    share = special.expit(numbers(gamma.logit))
    amount = stats.gamma(numbers(gamma.base.concentration), scale=1 / numbers(gamma.base.rate))
    dry = y[:, 2:3] == 0
    below[..., 2] = np.where(dry, 0, share + (1 - share) * amount.cdf(y[:, 2:3]))
    at[..., 2] = np.where(dry, share, 0)
    center = stats.logistic(numbers(logistic.loc), numbers(logistic.scale))
    level = y[:, 3:4]
    below[..., 3] = np.where(level <= -1, 0, center.cdf(level - 0.125))
    at[..., 3] = np.where(level >= 1, 1, center.cdf(level + 0.125)) - below[..., 3]
    share, rate = special.expit(numbers(counts.logit)), stats.poisson(numbers(counts.base.rate))
    positive = (1 - share) / rate.sf(0)
    none = y[:, 4:5] == 0
    below[..., 4] = np.where(none, 0, share + positive * (rate.cdf(y[:, 4:5] - 1) - rate.pmf(0)))
    at[..., 4] = np.where(none, share, positive * rate.pmf(y[:, 4:5]))
    return weights, below, at


def mixed(rows, dtype=np.float64):
    head = FactorizedHead(KINDS, 3)
    raw = jnp.asarray(RNG.normal(size=(rows, head.num_outputs)), dtype)
    mixture = head(raw)
    return mixture, jaxmdn.sample(jax.random.key(1), mixture)


def test_jumps_are_scipy_s():
    mixture, y = mixed(300)
    assert mixture.jumps == JUMPS
    weights, below, at = masses(mixture, np.asarray(y))
    found_below, found_at = mixture.jump(y)
    expected = np.sum(weights[..., None] * below, axis=1)
    np.testing.assert_allclose(found_below, expected, rtol=1e-10, atol=1e-14)
    expected = np.sum(weights[..., None] * at, axis=1)
    np.testing.assert_allclose(found_at, expected, rtol=1e-9, atol=1e-14)


def test_every_dimension_of_a_mixed_density_is_uniform():
    mixture, y = mixed(4000)
    u = np.asarray(jaxmdn.pit(mixture, y, key=KEY))
    for d in range(5):
        assert stats.kstest(u[:, d], "uniform").pvalue > 1e-3
    # Without the randomisation they are far from it, and the test sees it.
    plain = np.asarray(jaxmdn.cdf(mixture, y))
    assert all(stats.kstest(plain[:, d], "uniform").pvalue < 1e-6 for d in (1, 2, 3, 4))
    np.testing.assert_array_equal(u[:, 0], plain[:, 0])


def test_rosenblatt_s_numbers_are_independent_too():
    mixture, y = mixed(1)
    y = jaxmdn.sample(jax.random.key(2), mixture, 6000)[:, 0]
    u = np.asarray(jaxmdn.rosenblatt(mixture, y, key=KEY))
    for d in range(5):
        assert stats.kstest(u[:, d], "uniform").pvalue > 1e-3
        for e in range(d):
            assert abs(np.corrcoef(u[:, d], u[:, e])[0, 1]) < 4 / np.sqrt(len(u))
    # The second given the first, by Bayes' rule on SciPy's numbers, at a height of one half.
    weights, below, at = masses(mixture, np.asarray(y))
    normal = mixture.components.parts[0]
    first = stats.norm(np.asarray(normal.loc)[..., 0], np.asarray(normal.scale)[..., 0])
    joint = weights * first.pdf(np.asarray(y)[:, :1])
    joint = joint / joint.sum(-1, keepdims=True)
    low, height = jaxmdn.mixture.sequential.conditional_jumps(mixture, y)
    np.testing.assert_allclose(low[:, 1], np.sum(joint * below[..., 1], -1), rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(height[:, 1], np.sum(joint * at[..., 1], -1), rtol=1e-9, atol=1e-13)


def test_independent_heads_with_a_class_among_them():
    head = IndependentHead((NormalHead(2, 2, covariance="full"), CategoricalHead(3)))
    density = head(jnp.asarray(RNG.normal(size=(3000, head.num_outputs))))
    y = jaxmdn.sample(jax.random.key(1), density)
    assert density.jumps == (False, False, True)
    probabilities = np.asarray(density.parts[1].probabilities())
    label = np.asarray(y)[:, 2].astype(int)
    total = np.cumsum(probabilities, axis=-1)[np.arange(3000), label]
    own = probabilities[np.arange(3000), label]
    below, at = density.jump(y)
    np.testing.assert_allclose(below[:, 2], total - own, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(at[:, 2], own, rtol=1e-12)
    u = np.asarray(jaxmdn.pit(density, y, key=KEY))
    assert min(stats.kstest(u[:, d], "uniform").pvalue for d in range(3)) > 1e-3
    # The second of the pair given the first, and the class as before.
    numbers = np.asarray(jaxmdn.rosenblatt(density, y, key=KEY))
    pair = np.asarray(jaxmdn.rosenblatt(density.parts[0], y[:, :2]))
    np.testing.assert_allclose(numbers[:, :2], pair, rtol=1e-12)
    np.testing.assert_allclose(numbers[:, 2], u[:, 2], rtol=1e-12)
    assert np.max(np.abs(numbers[:, 1] - u[:, 1])) > 0.1


def test_an_autoregressive_density_given_the_parents():
    heads = (NormalHead(2, 1), CategoricalHead(2), FactorizedHead(("poisson",), 2))
    graph = ((), (0,), (0, 1))
    model = jaxmdn.nn.AutoregressiveMDN(
        2, heads, graph=graph, hidden_features=(8,), kernel_scale=1.0, rngs=nnx.Rngs(0)
    )
    x = jnp.asarray(RNG.normal(size=(3000, 2)), jnp.float32)
    density = model(x)
    y = jaxmdn.sample(jax.random.key(1), density)
    u = np.asarray(jaxmdn.rosenblatt(density, y, key=KEY), np.float64)
    assert u.shape == (3000, 3)
    for d in range(3):
        assert stats.kstest(u[:, d], "uniform").pvalue > 1e-3
        for e in range(d):
            assert abs(np.corrcoef(u[:, d], u[:, e])[0, 1]) < 4 / np.sqrt(len(u))
    # Each is its own conditional's, whatever the key: where nothing jumps, exactly.
    first = density.conditionals(y)[0]
    np.testing.assert_allclose(u[:, 0], jaxmdn.cdf(first, y[:, :1])[:, 0], rtol=1e-6)
    # Given another model's parameters, they are not uniform.
    other = jaxmdn.nn.AutoregressiveMDN(
        2, heads, graph=graph, hidden_features=(8,), kernel_scale=1.0, rngs=nnx.Rngs(1)
    )
    wrong = np.asarray(jaxmdn.rosenblatt(other(x), y, key=KEY), np.float64)
    assert max(stats.kstest(wrong[:, d], "uniform").pvalue for d in range(3)) < 1e-4


def test_affine_autoregressive_density_keeps_its_numbers():
    model = jaxmdn.nn.AutoregressiveMDN(
        1, NormalHead(2, 1), graph=((), (0,)), hidden_features=(4,), rngs=nnx.Rngs(0)
    )
    density, y = model(jnp.ones((5, 1))), jnp.asarray(RNG.normal(size=(5, 2)), jnp.float32)
    shift, scale = jnp.asarray([[3.0, -2.0], [4.0, 0.5]], jnp.float32)
    moved = jaxmdn.rosenblatt(density.affine(shift, scale), shift + scale * y)
    np.testing.assert_allclose(moved, jaxmdn.rosenblatt(density, y), rtol=1e-4)


def test_not_a_number_stays_where_it_is():
    mixture, y = mixed(6)
    y = jnp.where(jnp.eye(6, 5, dtype=bool), jnp.nan, y)
    u = jaxmdn.pit(mixture, y, key=KEY)
    np.testing.assert_array_equal(np.isnan(u), np.eye(6, 5, dtype=bool))


@pytest.mark.usefixtures("user_errors")
def test_a_key_is_asked_for():
    mixture, y = mixed(2)
    for transform in (jaxmdn.pit, jaxmdn.rosenblatt):
        name = transform.__name__
        with pytest.raises(ValueError, match=f"{name}: a density with discrete dimensions needs"):
            transform(mixture, y)
    counts = FactorizedHead(("poisson",), 2)(jnp.zeros(4))
    with pytest.raises(ValueError, match="pit: a discrete density needs a key"):
        jaxmdn.pit(counts, jnp.ones(1))
    model = jaxmdn.nn.AutoregressiveMDN(1, NormalHead(1, 1), graph=((), (0,)), rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="cdf: not defined for AutoregressiveDensity"):
        jaxmdn.pit(model(jnp.ones((2, 1))), jnp.ones((2, 2)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_quantiles_beyond_rare_zeros(dtype):
    """Where the tail on the zeros' other side rounds to one, as 1 - 1e-9 does in float32."""
    levels = np.array([1e-20, 1e-11, 1e-9, 1e-5, 0.1, 0.6, 0.999], dtype)
    logit, sides = -27.0, np.array([1, -1])
    base = jaxmdn.components.Normal(loc=jnp.asarray(12.0 * sides, dtype), scale=jnp.ones(2, dtype))
    hurdle = jaxmdn.components.Hurdle(base=base, logit=jnp.full(2, logit, dtype))

    @jax.jit
    def both(hurdle, p):
        low, pull = jax.vjp(lambda h, p: jaxmdn.quantile(h, p)[:, 0], hurdle, p)
        slopes = jax.vmap(pull)(jnp.eye(len(p), dtype=dtype))
        return low, jaxmdn.quantile(hurdle, p, upper=True)[:, 1], slopes

    low, high, (slope, rate) = both(hurdle, levels)
    zero = special.expit(logit)
    beyond = 12 + stats.norm.ppf(np.maximum(np.float64(levels) - zero, 0) / (1 - zero))
    beyond = np.where(levels > zero, beyond, 0)
    near = {"float32": 3e-6, "float64": 1e-13}[dtype]
    np.testing.assert_allclose(low, beyond, rtol=near)
    np.testing.assert_allclose(high, -beyond, rtol=near)
    # The implicit function: dy = (dp - dF) / f, of F = zero + (1 - zero) Phi.
    some, z = levels > zero, beyond - 12
    density = (1 - zero) * stats.norm.pdf(z)
    by_logit = -zero * (1 - zero) * stats.norm.sf(z) / density
    room = {"rtol": 100 * near, "atol": 0}
    np.testing.assert_allclose(slope.base.loc[some, 0], 1, **room)
    np.testing.assert_allclose(slope.base.scale[some, 0], z[some], **room)
    np.testing.assert_allclose(slope.logit[some, 0], by_logit[some], **room)
    np.testing.assert_allclose(np.diagonal(rate)[some], 1 / density[some], **room)
