"""Rows of any shape: sequences of targets, masks, inputs that are pytrees."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from test_train import quick_fit

import jaxmdn
from jaxmdn import train
from jaxmdn.train import checkpoint

pytestmark = pytest.mark.usefixtures("as_users_run")
LENGTH = 5


class Trunk(nnx.Module):
    """Inputs of each step beside those of the whole sequence and the embedding of an index."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(3, 2, rngs=rngs)
        self.linear = nnx.Linear(5, 8, rngs=rngs)

    def __call__(self, x):
        shape = (*x["step"].shape[:-1], 1)
        parts = (x["step"], x["whole"][..., None, :] + jnp.zeros(shape, jnp.float32))
        parts += (self.embed(x["index"])[..., None, :] + jnp.zeros(shape, jnp.float32),)
        return nnx.tanh(self.linear(jnp.concatenate(parts, axis=-1)))


def model(head=None):
    rngs = nnx.Rngs(0)
    head = jaxmdn.NormalHead(2, 1) if head is None else head
    return jaxmdn.nn.MDN.from_trunk(Trunk(rngs), 8, head, rngs=rngs)


def sequences(count=60, seed=0):
    rng = np.random.default_rng(seed)
    x = {
        "step": (40 + 5 * rng.normal(size=(count, LENGTH, 2))).astype(np.float32),
        "whole": (1e3 * rng.normal(size=(count, 1))).astype(np.float32),
        "index": np.arange(count) % 3,
    }
    y = 3 * x["step"][..., :1] + 1e-2 * x["whole"][:, None] + rng.normal(size=(count, LENGTH, 1))
    kept = np.arange(LENGTH) < rng.integers(1, LENGTH + 1, (count, 1))
    return x, y.astype(np.float32), kept


@pytest.mark.nightly
def test_sequences_are_their_steps():
    """Without shuffling across sequences (one batch, SGD) a step is a row of a table."""
    x, y, kept = sequences()
    options = {"validation": None, "batch_size": 1000, "optimizer": optax.sgd(0.1)}
    whole = quick_fit(model(), x, y, weights=kept, **options)
    flat = {
        "step": x["step"].reshape(-1, 1, 2),
        "whole": np.repeat(x["whole"], LENGTH, axis=0),
        "index": np.repeat(x["index"], LENGTH),
    }
    maps = whole.x_standardizer.parts
    assert set(maps) == {"['step']", "['whole']"}
    np.testing.assert_allclose(maps["['step']"].shift, x["step"][kept].mean(0), rtol=1e-6)
    share = kept.sum(1)
    np.testing.assert_allclose(
        maps["['whole']"].shift, np.average(x["whole"], weights=share, axis=0), rtol=1e-6
    )
    steps = quick_fit(model(), flat, y.reshape(-1, 1, 1), weights=kept.reshape(-1), **options)
    for name in ("train_nll", "grad_norm", "mean_weight"):
        np.testing.assert_allclose(steps.history[name], whole.history[name], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(steps.report.mean_weight, whole.report.mean_weight, rtol=1e-4)
    value = whole.log_prob(x, y)
    assert value.shape == (60, LENGTH)
    np.testing.assert_allclose(
        value.reshape(-1, 1), steps.log_prob(flat, y.reshape(-1, 1, 1)), atol=1e-3
    )
    np.testing.assert_allclose(
        value, jaxmdn.log_prob(whole.predict(x), jnp.asarray(y)), rtol=1e-4, atol=1e-4
    )


def test_what_is_masked_does_not_matter():
    x, y, kept = sequences()
    held = sequences(20, seed=1)
    fits = []
    for filler in (y, np.where(kept[..., None], y, np.nan)):
        options = {"weights": kept, "validation": (held[0], held[1], held[2])}
        fits.append(quick_fit(model(), x, filler, **options))
    np.testing.assert_array_equal(fits[0].history["valid_nll"], fits[1].history["valid_nll"])
    expected = -np.asarray(fits[0].log_prob(*held[:2]))[held[2]].mean()
    best = fits[0].best_epoch
    assert fits[0].history["valid_nll"][best] == pytest.approx(expected, abs=1e-3)


@pytest.mark.nightly
def test_sequences_of_labels_and_objectives():
    x, y, kept = sequences()
    label = (y[..., 0] > 120).astype(np.int32)
    head = jaxmdn.ClassConditionalHead(2, jaxmdn.NormalHead(1, 1))
    result = quick_fit(model(head), x, jaxmdn.Labeled(label, y), weights=kept)
    assert result.log_prob(x, jaxmdn.Labeled(label, y)).shape == (60, LENGTH)
    assert np.isfinite(result.history["valid_nll"]).all()
    result = quick_fit(model(), x, y, weights=kept, loss=train.objective(jaxmdn.crps))
    assert result.history["valid_loss"][-1] < result.history["valid_loss"][0]


@pytest.mark.nightly
def test_inputs_alone_or_targets_alone(tmp_path):
    x, y, _ = sequences()
    inputs = quick_fit(model(), x, y, standardize_y=False)
    assert inputs.y_standardizer is None
    targets = quick_fit(model(), x, y, standardize_x=False)
    assert targets.x_standardizer is None
    assert targets.y_standardizer.scale.shape == (1,)
    folder = checkpoint.save(tmp_path / "model", inputs)
    loaded = checkpoint.load(folder, model=model())
    np.testing.assert_array_equal(loaded.log_prob(x, y), inputs.log_prob(x, y))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones((60, 3)), r"weights must have shape \[60\], one per row, or \[60, 5\], got"),
        (np.zeros((60, LENGTH), bool), "not all zero"),
    ],
)
def test_weights_of_sequences_are_checked(user_errors, weights, message):
    x, y, _ = sequences()
    with pytest.raises(ValueError, match=message):
        quick_fit(model(), x, y, weights=weights)


def test_a_target_outside_the_support_is_named(user_errors):
    x, y, _ = sequences()
    y = np.abs(y)
    y[7, 2] = -1.0
    head = jaxmdn.FactorizedHead((jaxmdn.Family("gamma"),), 2)
    with pytest.raises(ValueError, match=r"the first of them row 7: column 0 is -1\.0"):
        quick_fit(model(head), x, y)
