"""Training: pure steps, fit, standardisation, early stopping, failures, reports."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from flax import nnx
from scipy import optimize, stats

import jaxmdn
from jaxmdn import train
from jaxmdn.train.data import batch_indices
from jaxmdn.train.optimizers import shared
from jaxmdn.train.result import _log_prob, _predict

pytestmark = pytest.mark.usefixtures("as_users_run")


def linear_data(count=300, seed=0):
    """y | x ~ N(3 x + 10, 0.5^2): the best NLL is known."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 2)).astype(np.float32)
    noise = 0.5 * rng.normal(size=count)
    y = (3.0 * x[:, 0] + 10.0 + noise)[:, None].astype(np.float32)
    return x, y


def small_model(components=2, dim=1, seed=0, **options):
    head = jaxmdn.NormalHead(components, dim)
    return jaxmdn.nn.MDN(2, head, hidden_features=(16,), rngs=nnx.Rngs(seed), **options)


# Most fits below share rows, architecture and optimizer, and so one compiled program.
ADAM = optax.adam(1e-2)


def quick_fit(model, x, y, **options):
    options = {"num_epochs": 3, "progress": False, "batch_size": 64, "optimizer": ADAM, **options}
    return train.fit(model, x, y, **options)


# Steps


def test_train_step_is_the_optimizers_step():
    """One step of SGD on a quadratic, by hand."""
    optimizer = optax.sgd(0.25)
    step = train.make_train_step(lambda p, batch, key: jnp.sum((p - batch) ** 2), optimizer)
    params = jnp.array([1.0, -2.0])
    state = train.TrainState.create(params, optimizer, jax.random.key(0))
    state, metrics = step(state, jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(state.params, [0.5, -0.5], rtol=1e-6)
    np.testing.assert_allclose(metrics.loss, 10.0, rtol=1e-6)
    np.testing.assert_allclose(metrics.grad_norm, np.hypot(2.0, 6.0), rtol=1e-6)
    assert int(state.step) == 1
    assert params.tolist() == [1.0, -2.0], "the caller's parameters must survive donation"


def test_train_step_donates_its_state():
    optimizer = optax.sgd(0.1)
    step = train.make_train_step(lambda p, batch, key: jnp.sum(p**2), optimizer)
    state = train.TrainState.create(jnp.ones(1000), optimizer, jax.random.key(0))
    before = state.params
    step(state, None)
    assert before.is_deleted()


def test_train_step_gives_every_step_its_own_key():
    optimizer = optax.sgd(1.0)
    step = train.make_train_step(lambda p, batch, key: jax.random.normal(key) + 0.0 * p, optimizer)
    state = train.TrainState.create(jnp.float32(0), optimizer, jax.random.key(0))
    losses = []
    for _ in range(5):
        state, metrics = step(state, None)
        losses.append(float(metrics.loss))
    assert len(set(losses)) == 5


def test_stateful_step_and_eval_step():
    def loss(params, model_state, batch, key):
        return (params - batch) ** 2, model_state + 1

    optimizer = optax.sgd(0.5)
    step = train.make_train_step(loss, optimizer, stateful=True)
    state = train.TrainState.create(
        jnp.float32(1.0), optimizer, jax.random.key(0), model_state=jnp.int32(0)
    )
    state, _ = step(state, jnp.float32(3.0))
    assert int(state.model_state) == 1
    assert float(state.params) == 3.0
    evaluate = train.make_eval_step(lambda params, batch, key: params * batch)
    assert float(evaluate(state, jnp.float32(2.0))) == 6.0


def test_state_is_a_pytree():
    optimizer = optax.adam(1e-3)
    state = train.TrainState.create({"w": jnp.ones(3)}, optimizer, jax.random.key(0))
    doubled = jax.tree.map(lambda leaf: leaf, state)
    assert jax.tree.structure(doubled) == jax.tree.structure(state)


# Batches


@pytest.mark.parametrize(("count", "size"), [(10, 4), (8, 4), (3, 4), (1, 1), (7, 7)])
def test_every_row_is_in_exactly_one_batch(count, size):
    index, counts = batch_indices(jnp.arange(count)[::-1], size)
    assert index.shape == (-(-count // size), size)
    used = np.asarray(index)[np.asarray(counts) == 1]
    assert sorted(used) == list(range(count))
    assert float(counts.sum()) == count
    filling = np.asarray(index)[np.asarray(counts) == 0]
    assert len(set(filling)) == min(len(filling), count), "others, not one again and again"


# Standardiser


def test_standardizer_against_numpy():
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(50, 3)) * [1.0, 1e-3, 1e4] + [0, 5, -1e6]).astype(np.float32)
    weights = rng.uniform(size=50).astype(np.float32)
    fitted = train.Standardizer.fit(jnp.asarray(values), jnp.asarray(weights))
    wide = values.astype(np.float64)
    shift = np.average(wide, axis=0, weights=weights)
    scale = np.sqrt(np.average((wide - shift) ** 2, axis=0, weights=weights))
    np.testing.assert_allclose(fitted.shift, shift, rtol=1e-6)
    np.testing.assert_allclose(fitted.scale, scale, rtol=1e-6)
    np.testing.assert_allclose(fitted.log_det, np.log(scale).sum(), rtol=1e-5)
    round_trip = fitted.inverse(fitted(jnp.asarray(values)))
    np.testing.assert_allclose(round_trip, values, rtol=1e-6)


def test_standardizer_leaves_constants_alone_and_nothing_else():
    values = jnp.full((10, 2), 3.3e7).at[:, 1].set(jnp.arange(10.0))
    fitted = train.Standardizer.fit(values)
    assert float(fitted.scale[0]) == 1.0
    stamps = 1.7e9 + np.arange(10.0)[:, None]
    assert train.Standardizer.fit(stamps).scale[0] == pytest.approx(np.arange(10).std())
    assert np.isfinite(fitted(values)).all()


# fit


@pytest.mark.version
def test_fit_reaches_the_known_likelihood_and_reports_target_units():
    x, y = linear_data(2000)
    model = small_model(1)
    result = quick_fit(model, x, 1000.0 * y, num_epochs=60)
    x_new, y_new = linear_data(2000, seed=1)
    nll = -float(jnp.mean(result.log_prob(x_new, 1000.0 * y_new)))
    best = -stats.norm.logpdf(1000.0 * y_new[:, 0], 1000.0 * (3 * x_new[:, 0] + 10), 500.0).mean()
    assert best - 0.02 < nll < best + 0.03
    # The history is in the target's unit too, and agrees with the density predict returns.
    assert abs(result.history["valid_nll"][result.best_epoch] - best) < 0.15
    predicted = result.predict(x_new)
    np.testing.assert_allclose(
        jaxmdn.log_prob(predicted, 1000.0 * y_new), result.log_prob(x_new, 1000.0 * y_new),
        rtol=2e-4, atol=2e-4,
    )  # fmt: skip
    error = jaxmdn.mean(predicted)[:, 0] - 1000.0 * (3 * x_new[:, 0] + 10)
    assert np.sqrt(np.mean(np.square(error))) < 100.0  # a fifth of the noise


@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full", "low_rank"])
def test_affine_is_a_change_of_variables(covariance):
    """log p(shift + scale y) = log p(y) - sum log|scale|, signs included."""
    rng = np.random.default_rng(3)
    head = jaxmdn.NormalHead(3, 2, covariance=covariance)
    mixture = head(jnp.asarray(rng.normal(size=(5, head.num_outputs)), jnp.float32))
    y = jnp.asarray(rng.normal(size=(5, 2)), jnp.float32)
    shift, scale = jnp.array([5.0, -7.0]), jnp.array([-3.0, 0.02])
    moved = jaxmdn.log_prob(mixture.affine(shift, scale), shift + scale * y)
    expected = jaxmdn.log_prob(mixture, y) - np.log(3.0) - np.log(0.02)
    np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-3)


def test_predict_and_log_prob_are_one_density_with_correlated_targets():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(80, 2)).astype(np.float32)
    y = (rng.normal(size=(80, 2)) @ [[3.0, 1.0], [0.0, 0.02]] + [5, -7]).astype(np.float32)
    head = jaxmdn.NormalHead(3, 2, covariance="full")
    model = jaxmdn.nn.MDN(2, head, hidden_features=(8,), rngs=nnx.Rngs(0))
    result = quick_fit(model, x, y, num_epochs=1)
    np.testing.assert_allclose(
        jaxmdn.log_prob(result.predict(x), y), result.log_prob(x, y), rtol=1e-3, atol=1e-3
    )


@pytest.mark.version
def test_same_seed_same_result_another_seed_another():
    x, y = linear_data()
    first = quick_fit(small_model(dropout=0.1), x, y, seed=5)
    again = quick_fit(small_model(dropout=0.1), x, y, seed=5)
    other = quick_fit(small_model(dropout=0.1), x, y, seed=6)
    for one, two in zip(
        jax.tree.leaves(nnx.state(first.model, nnx.Param)),
        jax.tree.leaves(nnx.state(again.model, nnx.Param)),
        strict=True,
    ):
        assert np.array_equal(one, two)
    assert np.array_equal(first.history["valid_nll"], again.history["valid_nll"])
    assert not np.array_equal(first.history["valid_nll"], other.history["valid_nll"])


def test_early_stopping_restores_the_best_parameters():
    x, y = linear_data()
    result = quick_fit(
        small_model(), x, y, num_epochs=400, patience=5, validation=(x[:30], y[:30] + 1.0),
        calibrate=False,
    )  # fmt: skip
    valid = result.history["valid_nll"]
    assert len(valid) < 401
    # Once nothing was gained for five epochs, refinements of three epochs or more each.
    first = next(n for n in range(6, len(valid)) if np.nanargmin(valid[: n + 1]) == n - 5)
    assert len(valid) - 1 == result.best_epoch + 3 >= first + 3 * 3
    assert np.nanargmin(valid) == result.best_epoch
    kept = -float(jnp.mean(result.log_prob(x[:30], y[:30] + 1.0)))
    assert kept == pytest.approx(valid[result.best_epoch], abs=2e-4)


def test_without_validation_all_epochs_run():
    x, y = linear_data()
    result = quick_fit(small_model(), x, y, validation=None, num_epochs=4)
    assert result.best_epoch == 4
    assert np.isnan(result.history["valid_nll"]).all()
    assert np.isfinite(result.history["train_nll"][1:]).all()


def test_training_loss_is_the_weighted_mean_even_with_a_short_last_batch():
    """With a learning rate of zero the epoch's loss must equal the loss of all rows at once."""
    x, y = linear_data(101)
    weights = np.random.default_rng(0).uniform(0.1, 2.0, 101).astype(np.float32)
    result = quick_fit(
        small_model(), x, y, weights=weights, validation=None, num_epochs=1, batch_size=32,
        optimizer=optax.sgd(0.0),
    )  # fmt: skip
    rows = -np.asarray(result.log_prob(x, y), np.float64)
    assert result.history["train_nll"][1] == pytest.approx(
        np.average(rows, weights=weights), abs=1e-4
    )


def test_rows_of_weight_zero_are_left_out_altogether():
    """Few of many count: they are split, cut into batches and trained on as if they were alone."""
    x, y = linear_data(150)
    wide = np.repeat(x, 9, axis=0), np.repeat(y, 9, axis=0), np.tile(np.arange(9) == 4, 150)
    wide[1][~wide[2]] = np.nan
    alone = quick_fit(small_model(), x, y)
    among = quick_fit(small_model(), *wide[:2], weights=wide[2])
    for name in ("train_nll", "valid_nll", "grad_norm", "mean_weight"):
        np.testing.assert_array_equal(among.history[name], alone.history[name])
    np.testing.assert_array_equal(among.log_prob(x, y), alone.log_prob(x, y))


@pytest.mark.version
def test_non_finite_loss_raises_and_keeps_the_last_good_parameters():
    x, y = linear_data()

    def exploding(model, x, y, weights, key):
        value = model.nll(x, y, weights=weights)
        return jnp.where(value < 0.6, jnp.nan, value)

    model = small_model()
    with (
        pytest.warns(UserWarning, match="of each step") as halvings,
        pytest.raises(train.NonFiniteLossError, match=r"non-finite in epoch \d+, at step") as info,
    ):
        quick_fit(model, x, y, num_epochs=200, loss=exploding)
    assert "with 0.125 of each step" in str(halvings[-1].message)
    result = info.value.result
    assert "learning rate" in str(info.value)
    assert result.model is model
    assert np.isfinite(np.asarray(result.log_prob(x, y))).all()
    assert result.best_epoch < len(result.history["seconds"]) - 1


def test_non_finite_without_validation_keeps_the_epoch_before():
    x, y = linear_data(128)
    with (
        pytest.warns(UserWarning, match="each step"),
        pytest.raises(train.NonFiniteLossError) as info,
    ):
        quick_fit(small_model(), x, y, validation=None, optimizer=optax.sgd(1e30), num_epochs=5)
    assert np.isfinite(np.asarray(info.value.result.log_prob(x, y))).all()


def test_half_the_step_where_the_whole_one_diverges():
    """A quadratic beyond |parameter| = 1e3 is NaN: SGD at 2.5 diverges, at 1.25 it does not."""
    x, y = linear_data(128)

    def bowl(model, x, y, weights, key):
        bias = model.output.linear.bias[...]
        value = 0.5 * jnp.sum((bias - 1.0) ** 2)
        return jnp.where(value > 1e3, jnp.nan, value)

    options = {
        "loss": bowl,
        "optimizer": optax.sgd(2.5),
        "initialize": False,
        "num_epochs": 40,
        "ema": 0.0,
    }
    model = small_model()
    with pytest.warns(UserWarning, match=r"with 0\.5 of each step"):
        quick_fit(model, x, y, **options)
    np.testing.assert_allclose(model.output.linear.bias[...], 1.0, atol=1e-3)


def test_running_average_is_that_of_the_parameters():
    """Two epochs of SGD by hand: the shares of the average after each of four steps."""
    x, y = linear_data(128)
    history = []

    def loss(model, x, y, weights, key):
        return jnp.sum(model.output.linear.bias[...])

    options = {"loss": loss, "optimizer": optax.sgd(1.0), "initialize": False, "num_epochs": 2}
    model = small_model()
    quick_fit(model, x, y, ema=0.2, validation=None, **options)
    average = 0.0
    for step in range(1, 5):
        share = min(0.2, step / (step + 9))
        average = share * average + (1 - share) * -float(step)
        history.append(average)
    np.testing.assert_allclose(model.output.linear.bias[...], history[-1], rtol=1e-6)


def test_refit_trains_on_all_rows_for_the_epochs_found():
    """The same as a run on all rows, without validation, from the same start."""
    x, y = linear_data(100)
    plain = {"standardize_x": False, "standardize_y": False, "initialize": False}
    split = {"validation": (x[:20], y[:20]), **plain}
    found = small_model()
    result = quick_fit(found, x[20:], y[20:], refit=True, num_epochs=4, **split)
    options = {**split, "validation": None, "num_epochs": result.best_epoch}
    rows = np.concatenate([x[20:], x[:20]]), np.concatenate([y[20:], y[:20]])
    alone = quick_fit(small_model(), *rows, **options)
    own, other = (jax.tree.leaves(nnx.state(one.model)) for one in (result, alone))
    for leaf, expected in zip(own, other, strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)


def test_an_epoch_of_some_rows_draws_from_them_alone():
    """Rows beyond ``count`` are never seen, those before it at least once, some of them twice."""
    x, _ = linear_data(100)
    seen = []

    def loss(model, x, y, weights, key):
        if len(y) == 100:  # else they are those held back
            jax.debug.callback(lambda values: seen.extend(np.asarray(values).ravel()), y)
        return jnp.sum(weights * model.nll(x, y, reduction="none"))

    marked = np.arange(100.0)[:, None]
    options = {"standardize_y": False, "initialize": False, "refit": True, "num_epochs": 1}
    quick_fit(small_model(), x, marked, loss=loss, batch_size=100, **options)
    jax.effects_barrier()
    search, again = seen[:100], seen[100:]
    counts = np.unique(search, return_counts=True)[1]
    assert len(counts) == 90
    assert len(set(again)) == 100, "and then all rows"


def test_scales_are_calibrated_on_the_validation_rows(tmp_path):
    """The factor by SciPy on NumPy's formula; history, predict, log_prob and files agree."""
    x, y = linear_data()
    noisy = y[:40] + np.random.default_rng(1).normal(size=(40, 1)).astype(np.float32)
    options = {"validation": (x[:40], noisy), "num_epochs": 60}
    result = quick_fit(small_model(), x[40:], y[40:], **options)
    raw = train.FitResult(**{**vars(result), "temperature": 1.0}).predict(x[:40])
    weights, loc, scale = (
        np.asarray(part, float)
        for part in (raw.weights(), raw.components.loc[..., 0], raw.components.scale[..., 0])
    )

    def log_density(log_factor):
        each = stats.norm.pdf(noisy, loc, np.exp(log_factor) * scale)
        return np.log(np.sum(weights * each, axis=1))

    def objective(log_factor):
        return 0.5 * log_factor**2 / 40 - log_density(log_factor).mean()

    best = optimize.minimize_scalar(objective, bounds=(0, 3), method="bounded").x
    assert best > 0.3, "the validation rows are noisier"
    found = np.log(result.temperature)
    np.testing.assert_allclose(found, best, atol=0.01)
    expected = log_density(found)
    np.testing.assert_allclose(result.log_prob(x[:40], noisy), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        result.history["valid_nll"][result.best_epoch], -expected.mean(), rtol=1e-5
    )
    wide = result.predict(x[:40]).components.scale[..., 0]
    np.testing.assert_allclose(wide, result.temperature * scale, rtol=1e-5)
    loaded = train.checkpoint.load(train.checkpoint.save(tmp_path / "saved", result))
    assert loaded.temperature == result.temperature
    plain = quick_fit(small_model(), x[40:], y[40:], calibrate=False, **options)
    assert plain.temperature == 1.0
    assert "temperature" not in plain.history


@pytest.mark.parametrize(
    "options",
    [
        {"function": jaxmdn.losses.beta_nll, "beta": 0.5},
        {"function": jaxmdn.crps},
        {"function": jaxmdn.energy_score, "num_samples": 4, "reparameterize": True},
        {"function": jaxmdn.nll, "x_noise": 0.1, "y_noise": 0.1},
    ],
    ids=["beta_nll", "crps", "energy_score", "noise"],
)
def test_objectives_train(options):
    x, y = linear_data(128)
    loss = train.objective(**options)
    assert loss == train.objective(**options), "equal content must share a compiled program"
    result = quick_fit(small_model(), x, y, loss=loss, num_epochs=12)
    losses = result.history["valid_loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0] - 0.1
    if loss.surrogate:
        np.testing.assert_allclose(result.best_epoch, np.argmin(result.history["valid_nll"]))


def test_the_epoch_kept_is_the_best_in_the_loss_that_is_trained():
    """A loss that the NLL contradicts: of these epochs the first has the best likelihood."""

    def small_raw(model, x, y, weights, key):
        return jnp.mean((model(x).components.loc - 50.0) ** 2)

    x, y = linear_data(128)
    result = quick_fit(small_model(), x, y, loss=small_raw, num_epochs=8)
    history = result.history
    assert result.best_epoch == np.argmin(history["valid_loss"]) > np.argmin(history["valid_nll"])


def test_noise_is_that_of_training_alone():
    """Inputs and targets move by the standard deviation asked for; validation sees none."""
    loss = train.objective(lambda head, raw, y, weights: jnp.var(y) + 0 * jnp.sum(raw), y_noise=2.0)
    model, key = small_model(), jax.random.key(0)
    zeros = jnp.zeros((4000, 1))
    rows = (jnp.zeros((4000, 2)), zeros, jnp.ones(4000))
    np.testing.assert_allclose(loss(model, *rows, key), 4.0, rtol=0.1)
    assert float(loss.clean(model, *rows, key)) == 0.0


@pytest.mark.version
def test_dropout_and_batch_norm_carry_their_state():
    class Trunk(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(2, 8, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.drop = nnx.Dropout(0.2, rngs=rngs)

        def __call__(self, x):
            return self.drop(nnx.relu(self.norm(self.linear(x))))

    x, y = linear_data()
    rngs = nnx.Rngs(0)
    model = jaxmdn.nn.MDN.from_trunk(Trunk(rngs), 8, jaxmdn.NormalHead(2, 1), rngs=rngs)
    result = quick_fit(model, x, y, num_epochs=5)
    assert not np.allclose(model.trunk.norm.mean[...], 0.0), "running statistics were not updated"
    once, twice = result.log_prob(x, y), result.log_prob(x, y)
    assert np.array_equal(once, twice), "evaluation must not drop units"


def test_same_architecture_compiles_once():
    from jaxmdn.train import program

    x, y = linear_data()
    quick_fit(small_model(), x, y, num_epochs=1)
    before = program._epoch._cache_size()
    quick_fit(small_model(seed=1), x, y, num_epochs=1, seed=1, optimizer=optax.adam(1e-2))
    assert program._epoch._cache_size() == before


def test_optimizers_are_known_by_what_they_are_made_of():
    def clipped(rate=1e-2, **options):
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, **options))

    def scheduled(steps=60):
        return optax.inject_hyperparams(optax.adamw)(optax.cosine_decay_schedule(1e-2, steps))

    def summed():
        return optax.MultiSteps(optax.adam(1e-2), 2)

    for make in (clipped, scheduled, summed):
        assert shared(make()) is shared(make())
    different = [clipped(), clipped(2e-2), clipped(b1=0.8), clipped(1), clipped(1.0)]
    different += [scheduled(), scheduled(61), *(clipped(lambda step: 1e-2) for _ in range(2))]
    assert len({id(shared(one)) for one in different}) == len(different)


@pytest.mark.parametrize(
    ("most", "programs"), [(30, 2), pytest.param(10_000, 11, marks=pytest.mark.nightly)]
)
def test_tables_of_any_length_share_a_few_programs(most, programs):
    """And give the rows' own densities, whatever fills the table up."""
    x, y = linear_data(most)
    result = quick_fit(small_model(), *linear_data(300))
    whole = result.log_prob(x, y)
    before = _predict._cache_size(), _log_prob._cache_size()
    for size in map(int, [1, 2, most, *np.random.default_rng(0).integers(1, most, 60)]):
        density = result.predict(x[:size])
        assert density.batch_shape == (size,)
        np.testing.assert_allclose(result.log_prob(x[:size], y[:size]), whole[:size], atol=1e-4)
    np.testing.assert_allclose(
        jaxmdn.log_prob(density, y[:size]), whole[:size], rtol=2e-4, atol=2e-4
    )
    inside = jax.jit(lambda x, y: (result.log_prob(x, y), jaxmdn.log_prob(result.predict(x), y)))
    for found in inside(x[:30], y[:30]):
        np.testing.assert_allclose(found, whole[:30], rtol=2e-4, atol=2e-4)
    assert _predict._cache_size() <= before[0] + programs + 1
    assert _log_prob._cache_size() <= before[1] + programs + 1


@pytest.mark.version
def test_class_conditional_and_categorical_targets():
    x, y = linear_data(300)
    label = (x[:, 1] > 0).astype(np.int32)
    head = jaxmdn.ClassConditionalHead(2, jaxmdn.NormalHead(1, 1))
    model = jaxmdn.nn.MDN(2, head, hidden_features=(16,), rngs=nnx.Rngs(0))
    result = quick_fit(model, x, jaxmdn.Labeled(label, y), num_epochs=30)
    density = result.predict(x)
    found = np.argmax(np.asarray(density.weights()), axis=-1)
    assert (found == label).mean() > 0.9
    assert result.report.mean_weight.shape == (2, 1)
    assert result.history["mean_weight"].shape == (31, 2)
    # The rows shown are the training rows, and most of one class's count is its own.
    np.testing.assert_allclose(result.history["mean_weight"][-1, 1], label.mean(), atol=0.1)

    classifier = jaxmdn.nn.MDN(
        2, jaxmdn.CategoricalHead(2), hidden_features=(16,), rngs=nnx.Rngs(0)
    )
    result = quick_fit(classifier, x, label[:, None], num_epochs=30)
    assert result.y_standardizer is None
    assert result.report is None
    assert "mean_weight" not in result.history
    found = np.argmax(np.asarray(result.predict(x).probabilities()), axis=-1)
    assert (found == label).mean() > 0.9


# Reports


def test_dead_components_and_floored_scales_are_named():
    x, y = linear_data(200)
    model = small_model(3)
    bias = np.zeros(model.head.num_outputs, np.float32)
    bias[:3] = [0.0, -30.0, 0.0]
    bias[6:] = [1.0, 1.0, -30.0]
    model.output.linear.bias[...] = jnp.asarray(bias)
    model.output.linear.kernel[...] = jnp.zeros_like(model.output.linear.kernel[...])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = quick_fit(model, x, y, initialize=False, optimizer=optax.sgd(0.0), num_epochs=1)
    texts = [str(entry.message) for entry in caught]
    assert all(entry.category is train.ComponentWarning for entry in caught)
    assert any(text.startswith("component 1 died") for text in texts)
    assert any(
        text.startswith("component 2 sit at") or "component 2 sits" in text for text in texts
    )
    np.testing.assert_allclose(result.report.mean_weight, [0.5, 0.0, 0.5], atol=1e-6)
    np.testing.assert_allclose(result.report.floor_share, [0, 0, 1], atol=1e-6)
    # A learning rate of zero: the weights are the bias's before and after the epoch.
    usage = result.history["mean_weight"]
    np.testing.assert_allclose(usage, [[0.5, 0.0, 0.5]] * 2, atol=1e-6)


# Precision, shapes and kinds of input


def test_time_stamps_as_inputs_cost_nothing():
    x, y = linear_data()
    moved = x.astype(np.float64) * [1000.0, 1.0] + [1.7e9, 0.0]
    plain, shifted = (quick_fit(small_model(), part, y) for part in (x.astype(np.float64), moved))
    np.testing.assert_allclose(
        shifted.history["valid_nll"], plain.history["valid_nll"], rtol=1e-3, atol=1e-3
    )
    np.testing.assert_allclose(shifted.log_prob(moved, y), plain.log_prob(x, y), atol=2e-2)


def test_fine_targets_on_a_large_offset_are_trained_exactly_and_warned_about():
    x, y = linear_data()
    wide = y.astype(np.float64)
    plain = quick_fit(small_model(), x, wide)
    with pytest.warns(UserWarning, match="Subtract a constant"):
        shifted = quick_fit(small_model(), x, wide + 1e8)
    np.testing.assert_allclose(
        shifted.history["valid_nll"], plain.history["valid_nll"], rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(shifted.log_prob(x, wide + 1e8), plain.log_prob(x, wide), atol=1e-3)


def test_lists_and_tables_are_arrays():

    x, y = linear_data()
    arrays = quick_fit(small_model(), x, y)
    frame = pd.DataFrame(x, columns=["a", "b"])
    tables = quick_fit(small_model(), frame, pd.DataFrame(y))
    assert np.array_equal(tables.history["valid_nll"], arrays.history["valid_nll"])
    lists = quick_fit(small_model(), x.tolist(), y.tolist())
    np.testing.assert_allclose(
        lists.history["valid_nll"][1:], arrays.history["valid_nll"][1:], rtol=1e-4, atol=1e-4
    )
    assert jaxmdn.mean(lists.predict(x[:3].tolist())).shape == (3, 1)
    with pytest.raises(TypeError, match=r"x must be numeric, got str 'red' in column"):
        quick_fit(small_model(), frame.assign(b="red"), y)


def test_predict_refuses_another_number_of_features(user_errors):
    x, y = linear_data()
    result = quick_fit(small_model(), x, y)
    for wrong in (x[:, :1], np.float32(0.5)):
        with pytest.raises(ValueError, match=r"expected values of shape \[..., 2\]"):
            result.predict(wrong)
    assert repr(result).startswith("FitResult(MDN, best_epoch=")


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.zeros((3, 1), np.float32)}, "same number of rows, got x 100, y 3"),
        ({"x": np.full((100, 2), np.nan, np.float32)}, "x must be finite, but row 0, column 0"),
        ({"y": np.where(np.arange(100) == 7, np.inf, 1.0)[:, None]}, "row 7, column 0 is inf"),
        ({"weights": np.ones(5, np.float32)}, r"weights must have shape \[100\]"),
        ({"weights": -np.ones(100, np.float32)}, "nonnegative and not all zero"),
        ({"validation": 1.5}, r"validation must be a share in \(0, 1\)"),
        ({"y": np.zeros((100, 2), np.float32)}, r"expected y of shape \[..., 1\]"),
        ({"y": np.zeros(100, np.float32)}, r"use y\[..., None\]"),
        ({"x": np.zeros(100, np.float32)}, r"x must have shape \[N, F\]"),
        ({"num_epochs": 0}, "num_epochs must be at least 1"),
        ({"y": np.full((100, 1), 7.0)}, "column 0 of y is constant"),
        ({"x": np.ones((100, 3), np.float32)}, r"expected x of shape \[..., 2\]"),
        ({"x": np.zeros((0, 2), np.float32), "y": np.zeros((0, 1), np.float32)}, "no rows"),
    ],
)
def test_error_messages(user_errors, change, message):
    x, y = linear_data(100)
    arguments = {"x": x, "y": y, **change}
    with pytest.raises(ValueError, match=message):
        quick_fit(small_model(), arguments.pop("x"), arguments.pop("y"), **arguments)


@pytest.mark.parametrize("dtype", ["int32", "Int64", "boolean", "object"])
def test_numbers_of_any_type_are_standardised_alike(dtype):
    x = np.arange(100)[:, None] % 2 if dtype == "boolean" else np.arange(100)[:, None]
    frame = pd.DataFrame({"a": pd.array(x[:, 0]).astype(dtype), "b": x[:, 0] / 7})
    y = (0.1 * x + np.random.default_rng(0).normal(size=x.shape)).astype(np.float32)
    plain = quick_fit(small_model(), np.concatenate([x, x / 7], axis=1), y)
    typed = quick_fit(small_model(), frame, y)
    np.testing.assert_array_equal(typed.history["valid_nll"], plain.history["valid_nll"])
    np.testing.assert_array_equal(typed.x_standardizer.scale, plain.x_standardizer.scale)
    for values in (x, jnp.asarray(x)):  # of a mapped whole number nothing is cut off
        mapped = train.Standardizer(shift=np.zeros(1), scale=np.full(1, 4.0))(values)
        assert mapped[1, 0] == 0.25


def test_what_is_missing_in_a_nullable_column_is_named():
    x = pd.DataFrame({"a": pd.array([1, None, 3], dtype="Int64"), "b": [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match="row 1, column 0 is nan"):
        quick_fit(small_model(), x, np.ones((3, 1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "adam"}, "optimizer must be an Optax transformation"),
        ({"model": nnx.Linear(2, 2, rngs=nnx.Rngs(0))}, "model must be an nnx.Module with head"),
        ({"y": np.full((100, 1), "a")}, "y must be numeric"),
        ({"y": [[np.datetime64("2024-01-01")]] * 100}, "turn times into numbers first"),
    ],
)
def test_type_messages(user_errors, change, message):
    x, y = linear_data(100)
    arguments = {"model": small_model(), "y": y, **change}
    with pytest.raises(TypeError, match=message):
        quick_fit(arguments.pop("model"), x, arguments.pop("y"), **arguments)


def test_labels_that_do_not_exist_are_named_before_training(user_errors):
    x, y = linear_data(100)
    label = np.arange(100) % 3 + 1
    message = "whole numbers from 0 to 2, but row 2 is 3"
    classifier = jaxmdn.nn.MDN(2, jaxmdn.CategoricalHead(3), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        quick_fit(classifier, x, label[:, None], validation=None)
    head = jaxmdn.ClassConditionalHead(3, jaxmdn.NormalHead(1, 1))
    model = jaxmdn.nn.MDN(2, head, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        quick_fit(model, x, jaxmdn.Labeled(label, y), validation=None)


def test_progress_bar_shows_the_nll(capfd):
    x, y = linear_data()
    quick_fit(small_model(), x, y, progress=True)
    assert "nats" in capfd.readouterr().err


def test_a_probability_has_no_unit():
    """A hurdle's zeros: scores in the target's unit count the change of unit elsewhere alone."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, size=(300, 2)).astype(np.float32)
    y = np.where(rng.random((300, 1)) < 0.3, 0, 1e4 * rng.gamma(4.0, size=(300, 1)))
    head = jaxmdn.FactorizedHead("hurdle", 2)
    model = jaxmdn.nn.MDN(2, head, hidden_features=(16,), rngs=nnx.Rngs(0))
    held_out = x[200:], y[200:]
    result = quick_fit(model, x[:200], y[:200], validation=held_out)
    found = np.asarray(result.log_prob(*held_out))
    direct = jaxmdn.log_prob(result.predict(held_out[0]), jnp.asarray(y[200:], jnp.float32))
    np.testing.assert_allclose(found, direct, rtol=1e-4, atol=1e-4)
    valid = result.history["valid_nll"][result.best_epoch]
    assert -found.mean() == pytest.approx(valid, abs=1e-3)
