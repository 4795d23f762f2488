"""A mixture's log-density and its derivative in one pass, beside the textbook's under autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

import jaxmdn
from jaxmdn.components import Normal


def log_prob(logits, loc, scale, y):
    return jaxmdn.log_prob(
        jaxmdn.Mixture(logits=logits, components=Normal(loc=loc, scale=scale)), y
    )


def textbook(logits, loc, scale, y):
    z = (y[..., None, :] - loc) / scale
    each = -0.5 * z**2 - jnp.log(scale) - 0.5 * np.log(2 * np.pi)
    joint = jax.nn.log_softmax(logits) + each.sum(-1)
    return jax.nn.logsumexp(joint, axis=-1)


def parameters(dim, shared):
    """Parts of every rank, which broadcast: ``[K]``, ``[2, 1, K, D]``, scales that are shared."""
    rng = np.random.default_rng(dim)
    scale = np.exp(rng.normal(size=(3, *shared)))
    return tuple(
        map(jnp.asarray, (rng.normal(size=4), rng.normal(size=(2, 1, 4, dim)), scale,
                          rng.normal(size=(3, dim))))
    )  # fmt: skip


def derivatives(function):
    """Value, gradient, its derivative along a direction, and forward mode along another."""

    def total(*arguments):
        return jnp.sum(jnp.sin(function(*arguments)))

    def along(*arguments):
        direction = tuple(jnp.cos(a) for a in arguments)
        gradient = jax.grad(total, argnums=(0, 1, 2, 3))
        second = jax.jvp(gradient, arguments, direction)
        return function(*arguments), second, jax.jvp(function, arguments, direction)[1]

    return jax.jit(along)


@pytest.mark.parametrize(
    ("dim", "shared"), [(1, (4, 1)), (1, (1, 1)), (3, (4, 3)), (3, (1, 1))], ids=str
)
def test_first_and_second_derivatives_of_parts_that_broadcast(dim, shared):
    arguments = parameters(dim, shared)
    found, expected = (derivatives(f)(*arguments) for f in (log_prob, textbook))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-10, 1e-12), found, expected)
    logits, loc, scale, y = map(np.asarray, arguments)
    each = norm.logpdf(y[..., None, :], loc, scale).sum(-1)
    exact = logsumexp(each + logits - logsumexp(logits), axis=-1)
    np.testing.assert_allclose(found[0], exact, 1e-12)


@pytest.mark.optimised
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_carries_no_weight_or_is_out_of_reach_has_no_derivative(dtype):
    # Rows: a component without weight; one far away; one whose square overflows; none in reach.
    logits = jnp.asarray([[0, -np.inf], [0, 0], [0, 0], [-np.inf, -np.inf], [0, np.nan]], dtype)
    loc = jnp.asarray([[0, 1], [0, 1e3], [0, 1e18], [0, 0], [0, 0]], dtype)[..., None]
    scale = jnp.asarray([[1, 1], [1, 1e-3], [1, 1e-18], [1, 1], [1, 1]], dtype)[..., None]
    y = jnp.full((5, 1), 0.5, dtype)
    rows, pull = jax.vjp(log_prob, logits, loc, scale, y)
    gradients = pull(jnp.ones_like(rows))
    alone = -0.125 - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(rows[:3], [alone, alone - np.log(2), alone - np.log(2)], 1e-6)
    assert rows[3] == -np.inf
    assert np.isnan(rows[4])
    dlogits, dloc, dscale, dy = gradients
    for gradient in gradients:
        assert np.all(np.isfinite(gradient[:4]))
        np.testing.assert_array_equal(gradient[3], 0)
    np.testing.assert_allclose(dlogits[:3], [[0, 0], [0.5, -0.5], [0.5, -0.5]], atol=1e-7)
    np.testing.assert_allclose(dloc[:3, :, 0], [[0.5, 0]] * 3, 1e-6)
    np.testing.assert_allclose(dscale[:3, :, 0], [[-0.75, 0]] * 3, 1e-6)
    np.testing.assert_allclose(dy[:3, 0], [-0.5] * 3, 1e-6)


def test_one_component_and_precision_of_half(float16):
    y = jnp.asarray([[0.25], [3.0]], jnp.float16)
    arguments = (
        jnp.asarray([0.3], jnp.float16), jnp.zeros((1, 1), jnp.float16),
        jnp.full((1, 1), 0.5, jnp.float16), y,
    )  # fmt: skip
    rows, pull = jax.vjp(log_prob, *arguments)
    assert rows.dtype == jnp.float32
    np.testing.assert_allclose(rows, norm.logpdf([0.25, 3.0], 0, 0.5), 1e-6)
    dlogits, dloc, dscale, dy = pull(jnp.ones_like(rows))
    assert {a.dtype for a in (dlogits, dloc, dscale, dy)} == {jnp.dtype("float16")}
    np.testing.assert_allclose(dlogits, 0)
    np.testing.assert_allclose(np.ravel(dloc), 13.0, 1e-3)
    np.testing.assert_allclose(np.ravel(dscale), (0.25 - 1) / 0.5 + (36 - 1) / 0.5, 1e-3)
    np.testing.assert_allclose(np.ravel(dy), [-1.0, -12.0], 1e-3)
