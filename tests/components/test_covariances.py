"""Derivatives of the log-density of every form of a covariance, beside independent forms of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmdn
from jaxmdn.components import FullNormal, LowRankNormal, Normal

N, K, D, RANK = 300, 2, 4, 2


def low_rank(loc, scale, factor):
    return LowRankNormal(loc=loc, scale=scale, factor=factor)


def full(loc, scale, packed):
    unit = packed * np.tri(D, k=-1, dtype=packed.dtype) + np.eye(D, dtype=packed.dtype)
    return FullNormal(loc=loc, whitening_tril=unit / scale[..., None])


def diagonal(loc, scale):
    return Normal(loc=loc, scale=scale)


NIGHTLY = pytest.mark.nightly
# How many components have scales and shapes of their own, the shape's last axes, what makes it.
COVARIANCES = {
    "low rank": (K, (D, RANK), low_rank),
    "low rank, tied": (1, (D, RANK), low_rank),
    "full": (K, (D, D), full),
    "full, tied": (1, (D, D), full),
    "diagonal": (K, None, diagonal),
    "diagonal, tied": (1, None, diagonal),
}


@pytest.mark.optimised
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[NIGHTLY] * (n != "low rank")) for n in COVARIANCES]
)
def test_a_narrow_dimension_in_float32(name):
    """Scales of .003 to 1 beside scales of 1; by row, of the largest derivative of its kind."""
    own, last, make = COVARIANCES[name]
    rng = np.random.default_rng(3)
    narrow = np.repeat([1.0, 0.1, 0.01, 0.003], N // 4)
    scale = np.exp(0.3 * rng.normal(size=(N, own, D)))
    scale[..., 1] *= narrow[:, None]
    parameters = [rng.normal(size=(N, K, D)), scale]
    parameters += [] if last is None else [rng.normal(size=(N, own, *last))]
    arguments = [np.float32(a) for a in (rng.normal(size=(N, D)), *parameters)]

    @jax.jit
    def gradients(y, *parameters):
        def total(y, *parameters):
            return jnp.sum(make(*parameters).log_prob(y[:, None, :]))

        return jax.grad(total, argnums=tuple(range(1, len(arguments))))(y, *parameters)

    exact = gradients(*(np.float64(a) for a in arguments))
    # A difference y - loc of order one, rounded, is z with an error of 1e-7 / narrow. A low rank's
    # derivative in the scale has 1 - |Q1_d|^2, which rounding leaves with 1e-7 of narrow^2.
    room = 1e-6 + 2e-7 / narrow
    in_scale = 1e-6 / narrow if last == (D, RANK) else room
    rooms = (room, in_scale, room)
    for found, wanted, most in zip(gradients(*arguments), exact, rooms, strict=False):
        found, wanted = (np.asarray(a, np.float64).reshape(N, -1) for a in (found, wanted))
        error = np.abs(found - wanted).max(1) / np.abs(wanted).max(1)
        assert np.all(error < most), np.max(error / most)


@pytest.mark.parametrize("shared", [(3, K), pytest.param((1, 1), marks=NIGHTLY)], ids=str)
def test_every_derivative_of_a_low_rank_normal(shared):
    """First and second ones and forward mode, of a mixture of parts that broadcast."""
    rng = np.random.default_rng(4)
    arguments = tuple(map(jnp.asarray, (
        rng.normal(size=K), rng.normal(size=(2, 1, K, D)), np.exp(rng.normal(size=(*shared, D))),
        rng.normal(size=(*shared, D, RANK)), rng.normal(size=(3, D)),
    )))  # fmt: skip

    def written(logits, loc, scale, factor, y):
        mixture = jaxmdn.Mixture(logits=logits, components=low_rank(loc, scale, factor))
        return jaxmdn.log_prob(mixture, y)

    def dense(logits, loc, scale, factor, y):
        covariance = factor @ jnp.swapaxes(factor, -1, -2) + scale[..., None] ** 2 * np.eye(D)
        each = jax.scipy.stats.multivariate_normal.logpdf(y[..., None, :], loc, covariance)
        return jax.nn.logsumexp(jax.nn.log_softmax(logits) + each, axis=-1)

    def derivatives(function):
        def total(*arguments):
            return jnp.sum(jnp.sin(function(*arguments)))

        def along(*arguments):
            direction = tuple(jnp.cos(a) for a in arguments)
            gradient = jax.grad(total, argnums=tuple(range(len(arguments))))
            second = jax.jvp(gradient, arguments, direction)
            return function(*arguments), second, jax.jvp(function, arguments, direction)[1]

        return jax.jit(along)

    found, expected = (derivatives(f)(*arguments) for f in (written, dense))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-9, 1e-10), found, expected)
