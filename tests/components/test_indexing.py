"""``density[index]``: some positions of the batch, also where they share parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

import jaxmdn
from jaxmdn.heads import (
    CategoricalHead,
    ClassConditionalHead,
    FactorizedHead,
    Family,
    IndependentHead,
    NormalHead,
)

RNG = np.random.default_rng(20261126)
BATCH = (4, 3)
# Shared parameters: tied scales, fixed degrees of freedom, none.
HEADS = {
    "tied": NormalHead(3, 2, tied=True),
    "full": NormalHead(2, 2, covariance="full"),
    "fixed": FactorizedHead((Family("student_t", df=4.0),) * 2, 3),
    "classes": ClassConditionalHead(2, FactorizedHead((Family("student_t", df=4.0),) * 2, 2)),
    "zeros": FactorizedHead((Family("hurdle", base="gamma"), "poisson"), 2),
    "independent": IndependentHead((NormalHead(2, 1, tied=True), CategoricalHead(2))),
}
INDICES = {
    "one": (2, 1),
    "row": 1,
    "slice": slice(1, 3),
    "last": (..., -1),
    "mask": RNG.random(BATCH) < 0.5,
    "array": np.array([3, 0, 0]),
    "new axis": (slice(None), None),
}


@pytest.mark.parametrize("name", HEADS)
def test_positions_keep_their_density(name):
    head = HEADS[name]
    density = head(oracles.random_raw(RNG, head, BATCH))
    y = jnp.ones(2)
    whole = np.asarray(jaxmdn.log_prob(density, y))
    for index in INDICES.values():
        picked = density[index]
        assert type(picked) is type(density)
        assert picked.batch_shape == whole[index].shape
        value = jaxmdn.log_prob(picked, y)
        np.testing.assert_allclose(value, whole[index], rtol=1e-12, atol=1e-12)


def test_leaves_alone_would_be_the_wrong_ones():
    head = NormalHead(2, 2, tied=True)
    mixture = head(oracles.random_raw(RNG, head, (2,)))
    shared = dataclasses.replace(mixture.components, scale=mixture.components.scale[:1])
    mixture = dataclasses.replace(mixture, components=shared)
    np.testing.assert_array_equal(mixture[1].components.scale[0], shared.scale[0, 0])
    with pytest.raises(IndexError):
        jax.tree.map(lambda leaf: np.asarray(leaf)[1], mixture)


def test_constants_carry_the_batch_so_that_densities_stack():
    head = HEADS["fixed"]
    raw = jnp.asarray(oracles.random_raw(RNG, head, (5,)))
    y = jnp.asarray(RNG.normal(size=(5, 2)))
    mixture = head(raw)
    whole = jaxmdn.log_prob(mixture, y)
    np.testing.assert_allclose(jax.vmap(jaxmdn.log_prob)(mixture, y), whole, rtol=1e-12)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(head(row) for row in raw))
    np.testing.assert_allclose(jaxmdn.log_prob(stacked, y), whole, rtol=1e-12)
    np.testing.assert_allclose(
        jax.lax.map(lambda pair: jaxmdn.log_prob(*pair), (mixture, y)), whole, rtol=1e-12
    )


def test_traced_positions_and_gradients():
    head = HEADS["full"]
    mixture = head(oracles.random_raw(RNG, head, (5,)))
    y = jnp.asarray(RNG.normal(size=2))

    @jax.jit
    def value(mixture, i):
        return jaxmdn.log_prob(mixture[i], y)

    every = jaxmdn.log_prob(mixture, y)
    for i in range(5):
        np.testing.assert_allclose(value(mixture, i), every[i], rtol=1e-13)
    gradient = jax.grad(lambda mixture: value(mixture, 2))(mixture)
    assert not np.any(np.delete(gradient.components.loc, 2, axis=0))
    assert np.all(gradient.components.loc[2] != 0)


def test_an_autoregressive_density():
    model = jaxmdn.nn.AutoregressiveMDN(2, NormalHead(2, 1), graph=((), (0,)), rngs=nnx.Rngs(0))
    x, y = jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32), jnp.ones((4, 2), jnp.float32)
    density = model(x)
    np.testing.assert_allclose(
        jaxmdn.log_prob(density[1:3], y[1:3]), jaxmdn.log_prob(density, y)[1:3], rtol=1e-6
    )


def test_a_density_is_no_sequence():
    mixture = HEADS["full"](jnp.zeros((2, HEADS["full"].num_outputs)))
    with pytest.raises(IndexError):
        mixture[2]
    with pytest.raises(TypeError, match="not iterable"):
        iter(mixture)
