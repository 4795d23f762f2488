"""Flax NNX modules: composition, initialisation, description."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxmdn
from jaxmdn import nn

pytestmark = [pytest.mark.usefixtures("as_users_run"), pytest.mark.version]


def dense(module, x):
    return np.asarray(x) @ np.asarray(module.kernel[...]) + np.asarray(module.bias[...])


def test_mdn_is_trunk_then_head():
    model = nn.MDN(
        3,
        jaxmdn.NormalHead(4, 2),
        embedding=None,
        hidden_features=(5, 6),
        activation="tanh",
        rngs=nnx.Rngs(0),
    )
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    hidden = np.tanh(dense(model.trunk.layers[1], np.tanh(dense(model.trunk.layers[0], x))))
    raw = dense(model.output.linear, hidden)
    np.testing.assert_allclose(model.raw(x), raw, rtol=1e-5, atol=1e-6)
    y = jnp.ones((7, 2))
    expected = jaxmdn.log_prob(model.head(jnp.asarray(raw)), y)
    np.testing.assert_allclose(jaxmdn.log_prob(model(x), y), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.nll(x, y), -np.mean(expected), rtol=1e-5)
    np.testing.assert_allclose(model.nll(x, y, reduction="sum"), -np.sum(expected), rtol=1e-5)


class Doubled(nn.MDNHead):
    def raw(self, hidden):
        return 2.0 * self.linear(hidden)


class Squared(nnx.Linear):
    def __call__(self, inputs):
        return super().__call__(inputs) ** 2


def doubling(*arguments, **options):
    return 2.0 * jax.lax.dot_general(*arguments, **options)


HEAD = jaxmdn.NormalHead(2, 1, covariance="diagonal")
LAYERS = {
    "own": (nn.MDNHead, None, {}),
    "bfloat16": (nn.MDNHead, nnx.Linear, {"dtype": jnp.bfloat16}),
    "bfloat16 parameters": (nn.MDNHead, nnx.Linear, {"param_dtype": jnp.bfloat16}),
    "no bias": (nn.MDNHead, nnx.Linear, {"use_bias": False}),
    "own product": (nn.MDNHead, nnx.Linear, {"dot_general": doubling}),
    "subclass of linear": (nn.MDNHead, Squared, {}),
    "another module": (nn.MDNHead, nnx.LoRALinear, {"lora_rank": 2}),
    "raw overridden": (Doubled, None, {}),
}


@pytest.mark.parametrize("case", LAYERS)
def test_nll_is_that_of_the_layers_raw_outputs(case):
    kind, linear, options = LAYERS[case]
    layer = kind(3, HEAD, kernel_scale=1.0, rngs=nnx.Rngs(0))
    if linear is not None:
        layer.linear = linear(3, HEAD.num_outputs, rngs=nnx.Rngs(1), **options)
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
    y, weights = jnp.asarray(rng.normal(size=(6, 1)), jnp.float32), jnp.arange(6.0)

    @nnx.jit
    def both(layer, hidden):
        def direct(layer, hidden):
            return jnp.sum(layer.nll(hidden, y, weights=weights))

        def composed(layer, hidden):
            return jaxmdn.nll(HEAD, layer.raw(hidden), y, weights=weights, implementation="xla")

        return [
            nnx.value_and_grad(loss, argnums=(0, 1))(layer, hidden) for loss in (direct, composed)
        ]

    actual, expected = both(layer, hidden)
    # A bfloat16 layer rounds its raw outputs to 8 bits (4e-3 each); inside the loss, they are not.
    tolerance = 2e-2 if linear and jnp.bfloat16 in options.values() else 1e-5
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.max(np.abs(b)))


@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full", "low_rank"])
def test_initial_density_is_the_datas_for_every_input(covariance):
    rng = np.random.default_rng(0)
    y = rng.normal(size=(500, 2)) @ np.array([[1.5, 0.4], [0.0, 0.9]]) + [1.0, -2.0]
    head = jaxmdn.NormalHead(6, 2, covariance=covariance)
    model = nn.MDN(3, head, kernel_scale=1e-3, rngs=nnx.Rngs(0))
    model.initialize(jax.random.key(0), jnp.asarray(y, jnp.float32))
    density = model(jnp.asarray(rng.normal(size=(4, 3)), jnp.float32))
    for row in range(4):
        np.testing.assert_allclose(jaxmdn.mean(density)[row], y.mean(0), atol=0.01)
        np.testing.assert_allclose(
            jaxmdn.covariance(density)[row], np.cov(y.T, bias=True), atol=0.02
        )


def test_kernel_scale_is_the_spread_of_raw_outputs():
    layer = nn.MDNHead(400, jaxmdn.NormalHead(50, 2), kernel_scale=0.3, rngs=nnx.Rngs(0))
    hidden = np.random.default_rng(0).choice([-1.0, 1.0], size=(200, 400)).astype(np.float32)
    assert np.asarray(layer.raw(hidden)).std() == pytest.approx(0.3, rel=0.05)


def test_own_module_and_nnx_optimizer():
    """A user's trunk with an MDNHead, in a user's own nnx.jit loop, learns."""

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(1, 16, rngs=rngs)
            self.output = nn.MDNHead(16, jaxmdn.NormalHead(2, 1), rngs=rngs)

        def nll(self, x, y):
            return self.output.nll(nnx.tanh(self.hidden(x)), y)

    network = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(network, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(network, optimizer, x, y):
        loss, grads = nnx.value_and_grad(lambda network: network.nll(x, y))(network)
        optimizer.update(network, grads)
        return loss

    x = jnp.linspace(-1, 1, 100)[:, None]
    losses = [float(step(network, optimizer, x, x**2)) for _ in range(60)]
    assert losses[-1] < losses[0] - 0.5


def test_from_trunk_keeps_the_trunk():
    class Sum(nnx.Module):
        def __call__(self, x):
            return x["a"] + x["b"]

    model = nn.MDN.from_trunk(Sum(), 4, jaxmdn.NormalHead(2, 1), rngs=nnx.Rngs(0))
    x = {"a": jnp.ones((3, 4)), "b": jnp.ones((3, 4))}
    np.testing.assert_allclose(
        model.raw(x), dense(model.output.linear, 2 * np.ones((3, 4))), rtol=1e-5
    )
    with pytest.raises(ValueError, match="custom trunk"):
        model.config()


def test_config_round_trip():
    head = jaxmdn.NormalHead(3, 2, covariance="full", scale_link="exp")
    model = nn.MDN(5, head, hidden_features=[7], activation="relu", dropout=0.1, rngs=nnx.Rngs(0))
    again = nn.MDN.from_config(model.config(), rngs=nnx.Rngs(0))
    assert again.head == head
    assert nnx.graphdef(again) == nnx.graphdef(model)


def test_dropout_only_in_training_mode():
    model = nn.MDN(3, jaxmdn.NormalHead(2, 1), dropout=0.5, rngs=nnx.Rngs(0))
    x = jnp.ones((4, 3))
    model.train()
    assert not np.array_equal(model.raw(x), model.raw(x))
    model.eval()
    assert np.array_equal(model.raw(x), model.raw(x))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda r: nn.MDN(0, jaxmdn.NormalHead(2, 1), rngs=r), ValueError, "in_features"),
        (lambda r: nn.MDN(2, "normal", rngs=r), TypeError, "head must be a jaxmdn head, got str"),
        (
            lambda r: nn.MDN(2, jaxmdn.NormalHead(2, 1), activation="swosh", rngs=r),
            ValueError,
            "activation must be one of",
        ),
        (
            lambda r: nn.MDN(2, jaxmdn.NormalHead(2, 1), dropout=1.0, rngs=r),
            ValueError,
            r"dropout must lie in \[0, 1\)",
        ),
    ],
)
def test_error_messages(user_errors, build, error, message):
    with pytest.raises(error, match=message):
        build(nnx.Rngs(0))
