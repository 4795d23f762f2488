"""Watching a run and steering it: callbacks, Ctrl-C, any Optax transformation, precision."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from test_train import linear_data, quick_fit, small_model

import jaxmdn
from jaxmdn.train.watch import Interrupts

pytestmark = pytest.mark.usefixtures("as_users_run")


def test_callbacks_see_what_the_history_gets_and_may_stop():
    x, y = linear_data()
    seen = []

    def watch(epoch, record):
        seen.append((epoch, record))
        return "stop" if epoch == 2 else None

    result = quick_fit(small_model(), x, y, num_epochs=50, callbacks=watch)
    assert [epoch for epoch, _ in seen] == [1, 2]
    assert set(seen[0][1]) == set(result.history)
    for name, values in result.history.items():
        np.testing.assert_array_equal(values[1:], [record[name] for _, record in seen])
        assert np.isfinite(values[1:]).all() or name == "learning_rate"
    seconds = np.diff(result.history["seconds"][1:])
    assert 0 < 270 / result.history["rows_per_second"][2] <= 1.05 * seconds[0]
    quick_fit(small_model(), x, y, num_epochs=1, optimizer=None, callbacks=watch)
    assert seen[-1][1]["learning_rate"] == pytest.approx(3e-3)


def test_gradient_norm_is_that_of_the_loss():
    """The loss is ``3 b``, whose gradient has the norm ``3 sqrt(P)`` in every step."""
    x, y = linear_data()

    def loss(model, x, y, weights, key):
        return 3.0 * jnp.sum(model.output.linear.bias[...])

    result = quick_fit(small_model(), x, y, loss=loss, num_epochs=2)
    np.testing.assert_allclose(result.history["grad_norm"][1:], 3 * 6**0.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("callbacks", "kind", "message"),
    [
        ("tensorboard", TypeError, r"callbacks must be functions of \(epoch, record\)"),
        (lambda epoch, record: "Stop", ValueError, "must return None or \"stop\", got 'Stop'"),
    ],
)
def test_callbacks_are_checked(user_errors, callbacks, kind, message):
    with pytest.raises(kind, match=message):
        quick_fit(small_model(), *linear_data(), callbacks=callbacks)


def test_what_a_callback_raises_leaves_the_best_parameters():
    x, y = linear_data()
    model = small_model()
    start = np.asarray(model.output.linear.kernel[...])

    def fail(epoch, record):
        if epoch == 3:
            raise ConnectionError("the tracker is gone")

    with pytest.raises(ConnectionError, match="tracker"):
        quick_fit(model, x, y, callbacks=[fail])
    assert not np.array_equal(model.output.linear.kernel[...], start)


@pytest.mark.parametrize("refit", [False, True])
def test_ctrl_c_returns_the_best_result_so_far(refit):
    """The same as a run of that many epochs; refitting is left out. Twice raises."""
    x, y = linear_data()
    rows, options = (
        (small_model(), x[30:], y[30:]),
        {"validation": (x[:30], y[:30]), "refit": refit},
    )
    before = signal.getsignal(signal.SIGINT)

    def interrupt(epoch, record):
        if epoch == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.warns(UserWarning, match="interrupted after epoch 2"):
        result = quick_fit(*rows, num_epochs=50, callbacks=interrupt, **options)
    expected = quick_fit(small_model(), *rows[1:], num_epochs=2, **options).history["valid_nll"]
    np.testing.assert_array_equal(result.history["valid_nll"], expected)
    np.testing.assert_allclose(
        -np.mean(result.log_prob(x[:30], y[:30])), np.nanmin(expected), rtol=1e-5
    )
    assert signal.getsignal(signal.SIGINT) is before

    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        assert interrupts.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


# Any Optax transformation


@pytest.mark.nightly
def test_gradients_of_several_steps_are_those_of_larger_batches():
    """Of two halves of a batch the mean gradient is the batch's: SGD cannot tell them apart."""
    x, y = linear_data(128)
    options = {"validation": None, "ema": 0.0}
    whole = quick_fit(small_model(), x, y, optimizer=optax.sgd(0.1), batch_size=64, **options)
    halves = optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2)
    parts = quick_fit(small_model(), x, y, optimizer=halves, batch_size=32, **options)
    np.testing.assert_allclose(parts.log_prob(x, y), whole.log_prob(x, y), rtol=1e-4, atol=1e-4)


def test_schedules_are_followed_and_shown():
    """A rate of zero after the first of two epochs: the second leaves the parameters alone."""
    x, y = linear_data(128)
    schedule = optax.piecewise_constant_schedule(0.1, {2: 0.0})
    options = {"validation": None, "ema": 0.0}
    seen = []
    for epochs in (1, 2):
        optimizer = optax.inject_hyperparams(optax.sgd)(schedule)
        seen.append(
            quick_fit(small_model(), x, y, optimizer=optimizer, num_epochs=epochs, **options)
        )
    np.testing.assert_array_equal(seen[0].log_prob(x, y), seen[1].log_prob(x, y))
    np.testing.assert_allclose(seen[1].history["learning_rate"], [0.1, 0.1, 0.0], rtol=1e-6)


# Precision


def sets(name, count=400):
    """Problems whose NLL is well away from zero."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 2)).astype(np.float32)
    noise = rng.normal(size=(count, 2))
    if name == "sine":
        y = 20 * np.sin(2 * x[:, :1]) + 3 * noise[:, :1]
    elif name == "two branches":
        y = 30 * np.sign(noise[:, :1]) * x[:, :1] + 4 * noise[:, 1:]
    else:
        y = 50 * x + 10 * np.exp(0.3 * x[:, ::-1]) * noise
    return x, y.astype(np.float32)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "autoregressive"), [("sine", False), ("two branches", False), ("two outputs", True)]
)
def test_bfloat16_reaches_the_loss_of_float32(name, autoregressive):
    x, y = sets(name)
    found = []
    for dtype in (None, "bfloat16"):
        options = {"hidden_features": (32, 32), "dtype": dtype, "rngs": nnx.Rngs(0)}
        if autoregressive:
            model = jaxmdn.nn.AutoregressiveMDN(2, [jaxmdn.NormalHead(3)] * 2, **options)
        else:
            model = jaxmdn.nn.MDN(2, jaxmdn.NormalHead(3, y.shape[1]), **options)
        result = quick_fit(model, x, y, num_epochs=40)
        assert jaxmdn.log_prob(result.predict(x), jnp.asarray(y)).dtype == jnp.float32
        found.append(result.history["valid_nll"][result.best_epoch])
    assert found[1] == pytest.approx(found[0], rel=0.01)
    assert found[1] != found[0]


@pytest.mark.parametrize("autoregressive", [False, True])
def test_what_the_loss_sees_is_what_the_density_says(autoregressive):
    """One and the same number in bfloat16, through ``nll`` and through the density."""
    x, y = sets("two outputs", 64)
    options = {"dtype": "bfloat16", "param_dtype": jnp.bfloat16, "rngs": nnx.Rngs(0)}
    if autoregressive:
        model = jaxmdn.nn.AutoregressiveMDN(2, [jaxmdn.NormalHead(3)] * 2, **options)
    else:
        model = jaxmdn.nn.MDN(2, jaxmdn.NormalHead(3, 2), hidden_features=(8,), **options)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))} == {
        "bfloat16"
    }
    value = model.nll(x, y / 50, reduction="none")
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(-jaxmdn.log_prob(model(x), y / 50), value, rtol=1e-4, atol=1e-4)
    again = type(model).from_config(model.config(), rngs=nnx.Rngs(1))
    assert nnx.graphdef(again) == nnx.graphdef(model)
    with pytest.raises(TypeError, match="dtype must be a floating one"):
        jaxmdn.nn.MLP(2, dtype="int32", rngs=nnx.Rngs(0))
