"""The periodic embedding by its formula, and networks that begin with one."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxmdn
from jaxmdn.nn import MDN, PeriodicEmbedding

pytestmark = pytest.mark.usefixtures("as_users_run")


def test_embedding_is_its_formula():
    embedding = PeriodicEmbedding(3, frequency_scale=0.7, num_frequencies=5, rngs=nnx.Rngs(0))
    embedding.bias[...] = jnp.arange(9.0).reshape(3, 3)
    x = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    found = np.asarray(embedding(x))
    assert found.shape == (4, 2, embedding.out_features) == (4, 2, 12)
    frequency, phase, kernel, bias = (
        np.asarray(getattr(embedding, name)[...], float)
        for name in ("frequency", "phase", "kernel", "bias")
    )
    for f in range(3):
        waves = np.cos(2 * np.pi * x[..., f, None] * frequency[f] + phase[f])
        np.testing.assert_allclose(found[..., 4 * f], x[..., f])
        own = waves @ kernel[f] + bias[f]
        np.testing.assert_allclose(found[..., 4 * f + 1 : 4 * f + 4], own, rtol=1e-4, atol=1e-5)
    many = PeriodicEmbedding(200, frequency_scale=0.7, rngs=nnx.Rngs(1))
    np.testing.assert_allclose(np.std(many.frequency[...]), 0.7, rtol=0.05)
    assert np.abs(many.phase[...]).max() <= np.pi
    with pytest.raises(ValueError, match="PeriodicEmbedding"):
        embedding(jnp.zeros((4, 2)))


def test_network_with_an_embedding_is_described_and_built_again():
    head = jaxmdn.NormalHead(2, 1)
    model = MDN(3, head, hidden_features=(8,), embedding=0.5, rngs=nnx.Rngs(0))
    again = MDN.from_config(model.config(), rngs=nnx.Rngs(1))
    assert nnx.graphdef(again) == nnx.graphdef(model)
    assert MDN(3, head, hidden_features=(), embedding=0.5, rngs=nnx.Rngs(0))(
        jnp.zeros((5, 3))
    ).batch_shape == (5,)
