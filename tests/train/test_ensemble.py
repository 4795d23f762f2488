"""Ensembles: honest held-out rows, one exact mixture, the same networks after loading."""

import copy
import dataclasses
import json
import math
import os
import pickle
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import nnx
from ridge import dense_ridge
from scipy import optimize, special, stats

import jaxmdn
from jaxmdn import train
from jaxmdn.train import run as run_module
from jaxmdn.train.data import Rows
from jaxmdn.train.ensemble import _floor, _next_gain
from jaxmdn.train.folds import assign_folds
from jaxmdn.train.members import rate
from jaxmdn.train.run import Run, narrowing

pytestmark = pytest.mark.usefixtures("as_users_run")
RECIPE = train.Recipe(
    folds=3, members=2, cycles=(2, 3), hidden_features=(16,), batch_size=32, min_gain=0.0
)


def table(count=150, seed=0):
    """y | x ~ N(3 x_0 + 10, (0.5 e^{x_1 / 2})^2); the third input says nothing."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 3))
    y = 3.0 * x[:, :1] + 10.0 + 0.5 * np.exp(0.5 * x[:, 1:2]) * rng.normal(size=(count, 1))
    return x, y


@pytest.fixture(scope="module")
def fitted():
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        x, y = table()
        return train.fit_ensemble(x, y, recipe=RECIPE, progress=False), x, y


def each_network(result):
    """The networks one by one: ``(arm, place, module)``."""
    networks = jax.device_get(result.networks)
    arms, count = jax.tree.leaves(networks)[0].shape[:2]
    for arm in range(arms):
        for place in range(count):
            state = jax.tree.map(lambda leaf, a=arm, p=place: leaf[a, p], networks)
            yield arm, place, nnx.merge(result.graphdef, state)


def by_hand(result, x, y, networks, linear, narrowing=1.0):
    """The calibrated log-density of standardised rows under some networks, in NumPy.

    ``linear``: rows to fit the linear model to.
    """
    fitted = result.temperature
    noise = np.asarray(fitted.noise, float) / narrowing
    noise = np.maximum(noise, np.asarray(result.floor, float))[0]
    total, counts = 0.0, np.zeros(len(fitted.weights))
    for arm, _, _ in networks:
        counts[arm] += 1
    for arm, _, network in networks:
        mixture = nnx.jit(lambda network, x: network(x))(network, x)
        loc, scale = (
            np.asarray(leaf, float)[..., 0]
            for leaf in (mixture.components.loc, mixture.components.scale)
        )
        wide = np.hypot(float(fitted.scale[arm]) / narrowing * scale, noise)
        density = (np.asarray(mixture.weights()) * stats.t.pdf(y, 5.0, loc, wide)).sum(axis=-1)
        total = total + float(fitted.weights[arm]) / counts[arm] * density
    slope, intercept, scale = dense_ridge(linear[0], linear[1][:, 0], np.ones(len(linear[0])))
    wide = np.hypot(float(fitted.scale[-1]) * scale, noise)
    density = stats.t.pdf(y[:, 0], 5.0, x @ slope + intercept, wide)
    total = total + float(fitted.weights[-1]) * density
    far, spread = float(fitted.loc[0]), float(fitted.spread[0])
    share = float(fitted.outliers)
    return np.log((1 - share) * total + share * stats.t.pdf(y[:, 0], 5.0, far, spread))


def test_prediction_is_the_calibrated_mixture_of_all_networks(fitted):
    """Every network by itself, with SciPy's t density: values in the target's unit."""
    result, x, y = fitted
    standardized = result.x_standardizer(x), np.asarray(result.y_standardizer(y))
    expected = by_hand(result, *standardized, list(each_network(result)), standardized)
    expected -= np.log(result.y_standardizer.scale[0])
    np.testing.assert_allclose(result.log_prob(x, y), expected, rtol=1e-4, atol=1e-5)
    own = jaxmdn.log_prob(result.predict(x), jnp.asarray(y, jnp.float32))
    np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-4)
    assert result.num_networks in (12, 24)  # one snapshot of 2 arms x 2 members x 3 folds, or two


def test_out_of_fold_rows_are_predicted_by_networks_that_did_not_see_them(fitted):
    """Fold by fold, from the networks of that fold alone; and those never trained on its rows."""
    result, x, y = fitted
    y_map = result.y_standardizer
    found = jaxmdn.log_prob(result.out_of_fold, jnp.asarray(y, jnp.float32))
    for fold in range(3):
        rows = result.folds == fold
        own = [network for network in each_network(result) if network[1] % 3 == fold]
        parts = result.x_standardizer(x[rows]), np.asarray(y_map(y[rows]))
        others = result.x_standardizer(x[~rows]), np.asarray(y_map(y[~rows]))
        expected = by_hand(result, *parts, own, others, result.narrowing)
        expected -= np.log(y_map.scale[0])
        np.testing.assert_allclose(found[rows], expected, rtol=1e-4, atol=1e-4)
    nll = -float(jnp.mean(found))
    np.testing.assert_allclose(nll, result.history["out_of_fold_nll"].min(), atol=1e-4)


def test_two_models_together_are_narrower_than_one():
    """Against SciPy's minimiser of the same scores; three models with errors of their own."""
    rng = np.random.default_rng(0)
    y, weights = rng.normal(size=(400, 1)), rng.uniform(size=400)
    loc = 0.8 * rng.normal(size=(3, 400, 1, 1))
    models = jaxmdn.Mixture(
        logits=jnp.zeros((3, 400, 1)),
        components=jaxmdn.components.Normal(
            loc=jnp.asarray(loc, jnp.float32), scale=jnp.full(1, 0.5, jnp.float32)
        ),
    )
    rows = Rows(None, jnp.asarray(y, jnp.float32), jnp.asarray(weights, jnp.float32))
    found = narrowing(models, rows, jnp.full(1, 0.3, jnp.float32))

    def best(average):
        def loss(log_factor):
            wide = np.hypot(0.5 * np.exp(log_factor), 0.3)
            each = stats.norm.logpdf(y[:, 0], loc[..., 0, 0], wide)
            return -np.sum(weights * average(each))

        return optimize.minimize_scalar(loss, bounds=(-1, 3), method="bounded").x

    alone = best(lambda each: each.mean(axis=0))
    together = best(lambda each: special.logsumexp(each, axis=0))
    np.testing.assert_allclose(np.log(found), together - alone, atol=2e-3)
    assert found < 0.8


def test_the_factor_is_extrapolated_to_all_networks(fitted, monkeypatch):
    """Two arms and three folds: two thirds of the log-factor between one arm and two.

    Which is at least that of an average of two independent errors; the linear model keeps its own.
    """
    result, *_ = fitted
    assert 0 < result.narrowing <= 1
    own = SimpleNamespace(
        arms=2, held=np.zeros((3, 5)), floor=result.floor, rows=None, width=None, _out_of_fold=list
    )
    found = run_module.Calibrated([], result.temperature, result.out_of_fold, 0.0, 0.0)
    for measured, expected in ((0.8, 0.8), (0.5, 0.5**0.5), (1.2, 1.0)):
        monkeypatch.setattr(run_module, "narrowing", lambda *_, m=measured: jnp.asarray(m))
        temperature, factor = Run.for_all_networks(own, found)
        assert factor == pytest.approx(expected ** (2 / 3))
        each = np.array([factor, factor, 1.0])
        np.testing.assert_allclose(temperature.scale, each * result.temperature.scale, rtol=1e-6)
        np.testing.assert_allclose(temperature.noise, factor * result.temperature.noise, rtol=1e-6)


def test_held_out_targets_change_no_network_of_their_fold(fitted):
    """Another target in a row of fold 0: the networks of fold 0 stay bit for bit, others move."""
    result, x, y = fitted
    row = np.flatnonzero(result.folds == 0)[:2]
    swapped = y.copy()
    swapped[row] = y[row[::-1]]  # so that standardisation and starts stay the same
    once = dataclasses.replace(RECIPE, cycles=(2,))
    result, again = (
        train.fit_ensemble(x, own, recipe=once, progress=False) for own in (y, swapped)
    )
    pairs = zip(each_network(result), each_network(again), strict=False)
    for (_, place, first), (_, _, second) in pairs:
        kernels = [np.asarray(network.output.linear.kernel[...]) for network in (first, second)]
        assert np.allclose(*kernels, atol=1e-7) == (place % 3 == 0), place


ON_FOUR_DEVICES = """
import jax, json, sys
import numpy as np
from jaxmdn import train

rows = json.load(sys.stdin)
x, y = np.array(rows["x"]), np.array(rows["y"])
recipe = train.Recipe(**rows["recipe"])
mesh = jax.make_mesh((2, 2), ("networks", "other"))
result = train.fit_ensemble(x, y, recipe=recipe, mesh=mesh, progress=False)
train.checkpoint.save(sys.argv[1], result)
spread = [len(leaf.sharding.device_set) for leaf in jax.tree.leaves(result.networks)]
nll = -float(np.mean(result.log_prob(x, y)))
print(json.dumps({"devices": spread, "nll": nll}))
"""
ON_TWO_DEVICES = """
import jax, json, sys
import numpy as np
from jaxmdn import train

rows = json.load(sys.stdin)
x, y = np.array(rows["x"]), np.array(rows["y"])
assert jax.device_count() == 2
nll = -float(np.mean(train.checkpoint.load(sys.argv[1]).log_prob(x, y)))
print(json.dumps({"nll": nll}))
"""


def test_networks_spread_over_four_devices_are_those_of_one(tmp_path, user_errors):
    """Saved there, they are loaded with two devices and with one."""
    x, y = table()
    recipe = dataclasses.replace(RECIPE, cycles=(3,))  # of two, one end or both may be kept: a tie
    result = train.fit_ensemble(x, y, recipe=recipe, progress=False)
    rows = {"x": x.tolist(), "y": y.tolist(), "recipe": dataclasses.asdict(recipe)}
    found = []
    for program, count in ((ON_FOUR_DEVICES, 4), (ON_TWO_DEVICES, 2)):
        flags = f"--xla_force_host_platform_device_count={count} {os.environ.get('XLA_FLAGS', '')}"
        done = subprocess.run(
            [sys.executable, "-c", program, tmp_path / "saved"],
            input=json.dumps(rows),
            env={**os.environ, "XLA_FLAGS": flags},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert set(found[0]["devices"]) == {4}, "12 networks go evenly on four devices"
    assert found[1]["nll"] == pytest.approx(found[0]["nll"], rel=1e-5)
    loaded = train.checkpoint.load(tmp_path / "saved")
    for leaf, expected in zip(
        *(jax.tree.leaves(one.networks) for one in (loaded, result)), strict=True
    ):
        np.testing.assert_allclose(leaf, expected, atol=1e-5)
    # Temperatures are fitted until the slope is below 3e-5, from sums of another order: they agree
    # to some 1e-4, and these are not the rows that they were fitted to.
    np.testing.assert_allclose(found[0]["nll"], -np.mean(result.log_prob(x, y)), atol=3e-4)
    assert -np.mean(loaded.log_prob(x, y)) == pytest.approx(found[0]["nll"], rel=1e-5)
    with pytest.raises(TypeError, match="fit_ensemble: mesh must be a mesh of devices"):
        train.fit_ensemble(x, y, recipe=RECIPE, mesh=4, progress=False)


def test_the_same_seed_gives_the_same_networks(fitted):
    """By the programs that are there already."""
    result, x, y = fitted
    compiled = run_module._start._cache_size()
    again = train.fit_ensemble(x, y, recipe=RECIPE, progress=False)
    assert np.array_equal(again.log_prob(x, y), result.log_prob(x, y))
    other = train.fit_ensemble(x, y, recipe=RECIPE, seed=1, progress=False)
    assert not np.array_equal(other.log_prob(x, y), result.log_prob(x, y))
    assert run_module._start._cache_size() == compiled


def test_loaded_as_it_was_saved(fitted, tmp_path):
    result, x, y = fitted
    loaded = train.checkpoint.load(train.checkpoint.save(tmp_path / "ensemble", result))
    assert np.array_equal(loaded.log_prob(x, y), result.log_prob(x, y))
    np.testing.assert_array_equal(loaded.folds, result.folds)
    for name, values in result.history.items():
        np.testing.assert_array_equal(loaded.history[name], values)
    # Format 3 had no linear model.
    fitted = result.temperature
    two = {name: jnp.asarray(np.array(getattr(fitted, name))[:2]) for name in ("scale", "weights")}
    short = dataclasses.replace(fitted, **two)
    alone = dataclasses.replace(result, linear=None, temperature=short)
    folder = train.checkpoint.save(tmp_path / "alone", alone)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format": 3}))
    loaded = train.checkpoint.load(folder)
    assert loaded.linear is None
    assert np.array_equal(loaded.log_prob(x, y), alone.log_prob(x, y))


def test_tables_of_any_length_share_programs(fitted):
    """And give the rows' own densities, whatever fills the table up."""
    result, x, y = fitted
    whole = result.log_prob(x, y)
    parts = result.uncertainty(x)
    before = run_module.densities._cache_size(), run_module.moments._cache_size()
    for size in (1, 2, 5, 11, 16):
        density = result.predict(x[:size])
        assert density.batch_shape == (size,)
        np.testing.assert_allclose(result.log_prob(x[:size], y[:size]), whole[:size], atol=1e-4)
        np.testing.assert_allclose(result.uncertainty(x[:size])[0], parts[0][:size], rtol=1e-4)
    after = run_module.densities._cache_size(), run_module.moments._cache_size()
    assert after == (before[0] + 1, before[1] + 1)  # of 16 rows


def test_copies_predict_the_same(fitted):
    result, x, y = fitted
    for other in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        assert np.array_equal(other.log_prob(x, y), result.log_prob(x, y))
        assert other.graphdef == result.graphdef  # no program is compiled anew
        assert np.array_equal(
            jaxmdn.log_prob(other.out_of_fold, y.astype("f")),
            jaxmdn.log_prob(result.out_of_fold, y.astype("f")),
        )


def test_uncertainty_is_the_law_of_total_variance(fitted):
    """Its parts add up to the variance of the mixture without outliers."""
    result, x, _ = fitted
    parts = result.uncertainty(x)
    density = result.predict(x)
    inside = jaxmdn.Mixture(
        logits=density.logits[..., :-1],
        components=density.components.map_parameters(
            lambda leaf, rank: leaf[..., :-1, :] if leaf.shape[-2] > 1 else leaf
        ),
    )
    total = parts.aleatoric + parts.epistemic
    np.testing.assert_allclose(total, jaxmdn.variance(inside), rtol=1e-3)
    assert (np.asarray(parts.epistemic) > 0).all()
    far = result.uncertainty(x + np.array([20.0, 0.0, 0.0]))
    assert float(far.epistemic.mean()) > 3 * float(parts.epistemic.mean())


def test_importance_finds_the_input_that_matters(fitted):
    result, *_ = fitted
    x, y = table(400, seed=1)
    found = result.importance(x, y, num_repeats=3)
    assert float(found.value[0]) > 0.1
    assert np.argmax(found.value) == 0
    assert abs(float(found.value[2])) < 0.2 * float(found.value[0])


def test_gaps_and_categories_are_filled_before_the_networks(fitted, tmp_path):
    """Two columns, one with gaps, are three inputs; read by name; loaded and pickled with them."""
    result, *_ = fitted
    columns = train.Columns(
        names=("a", "b"), medians=(0.0, 5.0), gaps=(False, True), categories=((), ())
    )
    result = dataclasses.replace(result, columns=columns)
    frame = pd.DataFrame({"b": [1.0, np.nan, 3.0], "other": "text", "a": [0.5, -1.0, 2.0]})
    inputs = np.array([[0.5, 1.0, 0.0], [-1.0, 5.0, 1.0], [2.0, 3.0, 0.0]])
    y = np.array([[9.0], [10.0], [11.0]])
    exact = fitted[0].log_prob(inputs, y)
    np.testing.assert_array_equal(result.log_prob(frame, y), exact)
    found = jaxmdn.log_prob(result.predict(frame), y)
    np.testing.assert_allclose(found, exact, rtol=1e-4)
    assert result.importance(frame, y, num_repeats=2).value.shape == (2,)
    loaded = train.checkpoint.load(train.checkpoint.save(tmp_path / "saved", result))
    assert loaded.columns == columns
    np.testing.assert_array_equal(loaded.log_prob(frame, y), exact)
    assert pickle.loads(pickle.dumps(result)).columns == columns
    with pytest.raises(ValueError, match="predict: x lacks the column 'b'"):
        result.predict(frame[["a"]])


@pytest.mark.nightly
def test_a_gap_says_something():
    """Where the second input is missing, the target is ten higher; a category moves it, too."""
    rng = np.random.default_rng(0)
    x, gap, kind = rng.normal(size=600), rng.random(600) < 0.3, rng.integers(0, 3, 600)
    y = x + 10.0 * gap + np.array([0.0, 20.0, 40.0])[kind] + 0.3 * rng.normal(size=600)
    frame = pd.DataFrame({"x": x, "b": np.where(gap, np.nan, rng.normal(size=600))})
    frame["kind"] = pd.Categorical(np.array(["red", "green", "blue"])[kind])
    recipe = dataclasses.replace(RECIPE, cycles=(20, 40), hidden_features=(32, 32))
    result = train.fit_ensemble(frame[:500], y[:500, None], recipe=recipe, progress=False)
    mean = np.asarray(jaxmdn.mean(result.predict(frame[500:])))[:, 0]
    assert np.sqrt(np.mean((mean - y[500:]) ** 2)) < 1.0
    found = result.importance(frame[500:], y[500:, None], num_repeats=2).value
    assert found.shape == (3,)
    assert (np.asarray(found) > 0.5).all()


@pytest.mark.nightly
def test_it_learns_what_can_be_known():
    """Enough rows and epochs: within 0.08 nats of the exact NLL, and honest about it."""
    x, y = table(1200)
    recipe = train.Recipe(folds=3, cycles=(10, 20), hidden_features=(32, 32))
    result = train.fit_ensemble(x, y, recipe=recipe, progress=False)
    x_new, y_new = table(4000, seed=9)
    exact = -stats.norm.logpdf(
        y_new, 3.0 * x_new[:, :1] + 10.0, 0.5 * np.exp(0.5 * x_new[:, 1:2])
    ).mean()
    nll = -float(jnp.mean(result.log_prob(x_new, y_new)))
    assert exact < nll < exact + 0.08
    assert abs(result.history["out_of_fold_nll"].min() - nll) < 0.08
    p = np.asarray(jaxmdn.cdf(result.predict(x_new), jnp.asarray(y_new, jnp.float32)))
    assert 0.87 < ((p > 0.05) & (p < 0.95)).mean() < 0.95


@pytest.mark.parametrize("head", ["gamma", "class"])
def test_other_heads_are_stacked(head):
    """Heads without scales: the weights alone; a classifier is no flat mixture, and serves."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 2))
    if head == "gamma":
        y = rng.gamma(3.0, np.exp(x[:, :1]))
        own = jaxmdn.FactorizedHead("gamma", 2)
    else:
        y, own = (x[:, :1] > 0).astype(float), jaxmdn.CategoricalHead(2)
    recipe = train.Recipe(folds=2, cycles=(4,), hidden_features=(8,))
    result = train.fit_ensemble(x, y, own, recipe=recipe, progress=False)
    log_prob = np.asarray(result.log_prob(x, y))
    assert np.isfinite(log_prob).all()
    own = jaxmdn.log_prob(result.predict(x), jnp.asarray(y, jnp.float32))
    np.testing.assert_allclose(own, log_prob, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.temperature.weights.sum(), 1.0, rtol=1e-6)
    assert result.linear is None


def test_targets_on_a_grid_get_the_floor_of_their_rounding():
    """Whole numbers of spread 2: the floor is 0.29 / 2, and no predicted scale is below it."""
    x, y = table(60)
    y = np.round(y)
    recipe = train.Recipe(folds=2, cycles=(1,), hidden_features=(8,))
    with pytest.warns(UserWarning, match="fit_ensemble: column 0 of y lies on a grid of step 1"):
        result = train.fit_ensemble(x, y, recipe=recipe, progress=False)
    np.testing.assert_allclose(result.floor, 12**-0.5 / y.std(), rtol=1e-5)
    assert float(result.predict(x).components.scale.min()) >= 12**-0.5 * (1 - 1e-5)


def test_weights_leave_rows_out():
    """Rows of weight zero may hold anything that is finite."""
    x, y = table(80)
    recipe = train.Recipe(folds=2, cycles=(3,), hidden_features=(8,), batch_size=8)
    weights = np.r_[np.ones(60), np.zeros(20)]
    spoiled = y.copy()
    spoiled[60:] = 1e20
    nlls = [
        -train.fit_ensemble(x, target, weights=weights, recipe=recipe, progress=False)
        .log_prob(x[:60], y[:60])
        .mean()
        for target in (y, spoiled)
    ]
    np.testing.assert_allclose(nlls[0], nlls[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "step"),
    [([0.0, 10.0], 0.0), ([0.0, 1.0, 2.0, 5.0], 1.0), ([0.0, 1.0, 2.3, 5.0], 0.0)],
    ids=["two values", "a grid", "no grid"],
)
def test_a_grid_has_three_values_and_one_step(values, step):
    y = np.resize(values, 40)[:, None]
    unit = train.Standardizer.fit(y)
    found = _floor(y, train.Recipe(), unit)
    np.testing.assert_allclose(found, max(1e-3, step / 12**0.5 / unit.scale[0]), rtol=1e-5)
    np.testing.assert_allclose(_floor(y, train.Recipe(grid=False), unit), 1e-3, rtol=1e-5)


def test_classes_are_averaged_probabilities(fitted):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 2))
    label = (x[:, :1] + 0.5 * rng.normal(size=(90, 1)) > 0).astype(int)
    recipe = train.Recipe(folds=2, cycles=(4,), hidden_features=(8,), frequency_scales=(0.2,))
    result = train.fit_ensemble(x, label, jaxmdn.CategoricalHead(2), recipe=recipe, progress=False)
    inputs = result.x_standardizer(x)
    each = [network(inputs).probabilities() for _, _, network in each_network(result)]
    found = result.predict(x).probabilities()
    np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-5)


def test_an_interrupted_run_keeps_its_last_cycle(monkeypatch):
    x, y = table(60)
    recipe = train.Recipe(folds=2, cycles=(2, 100), hidden_features=(8,))
    run_epoch = Run.epoch

    def interrupted(self, done, length):
        if done == 3:
            signal.raise_signal(signal.SIGINT)
        return run_epoch(self, done, length)

    monkeypatch.setattr(Run, "epoch", interrupted)
    seen = []
    with pytest.warns(UserWarning, match="interrupted"):
        result = train.fit_ensemble(
            x, y, recipe=recipe, callbacks=lambda *told: seen.append(told), progress=False
        )
    assert result.history["epochs"].tolist() == [2]
    assert seen == [(1, {name: values[0] for name, values in result.history.items()})]
    assert np.isfinite(result.log_prob(x, y)).all()


def test_rate_warms_up_and_falls_to_zero():
    at = [float(rate(0.1, jnp.float32(f))) for f in (0.0, 0.05, 0.1, 0.55, 1.0)]
    np.testing.assert_allclose(at, [0.0, 0.5, 1.0, 0.5, 0.0], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"folds": 1}, ValueError),
        ({"clip": 0.0}, ValueError),
        ({"dropout": 1.5}, ValueError),
        ({"df": -1.0}, ValueError),
        ({"num_components": 0}, ValueError),
        ({"frequency_scales": (-1.0,)}, ValueError),
        ({"cycles": 5}, TypeError),
    ],
)
def test_recipes_are_checked(user_errors, options, kind):
    with pytest.raises(kind, match=rf"Recipe: {next(iter(options))}"):
        train.Recipe(**options)


# Folds


def test_folds_are_even_and_seeded():
    folds = assign_folds(103, 10, seed=1)
    assert np.bincount(folds).tolist() == [11] * 3 + [10] * 7
    assert np.array_equal(folds, assign_folds(103, 10, seed=1))
    assert not np.array_equal(folds, assign_folds(103, 10, seed=2))


def test_groups_stay_together_and_folds_stay_even():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 40, 1000)
    folds = assign_folds(1000, 5, groups=groups)
    assert all(len(set(folds[groups == group])) == 1 for group in range(40))
    assert np.bincount(folds).max() - np.bincount(folds).min() <= np.bincount(groups).max()


def test_fold_errors():
    for message, arguments in (
        ("3 rows do not make 5 folds", (3, 5)),
        ("num_folds must be", (3, 1)),
    ):
        with pytest.raises(ValueError, match=message):
            assign_folds(*arguments)
    with pytest.raises(ValueError, match="2 groups do not make 3 folds"):
        assign_folds(4, 3, groups=[0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"groups must have shape \[4\]"):
        assign_folds(4, 2, groups=[0, 1])
    with pytest.raises(ValueError, match="exclude each other"):
        assign_folds(4, 2, groups=[0, 0, 1, 1], ordered=True)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"y": np.zeros(9)}, ValueError, r"y must be an array \[N, columns\], got \[9\]"),
        ({"y": pd.Series(np.zeros(9))}, ValueError, r"got \[9\]; a single column is y.to_frame\("),
        ({"y": np.ones((9, 1))}, ValueError, "column 0 of y is constant"),
        ({"effort": "huge"}, ValueError, "effort"),
        ({"recipe": {}}, TypeError, "recipe must be a jaxmdn.train.Recipe"),
        ({"y": jaxmdn.Labeled(np.zeros(9, int), np.zeros((9, 1)))}, TypeError, "got Labeled"),
    ],
)
def test_errors(user_errors, arguments, kind, message):
    options = {"y": np.arange(9.0)[:, None], "progress": False, **arguments}
    with pytest.raises(kind, match=message):
        train.fit_ensemble(np.zeros((9, 2)), options.pop("y"), **options)


def test_the_next_cycle_is_expected_to_gain_as_the_last_ones_fell():
    assert _next_gain(math.inf, 0.3) == 0.3
    np.testing.assert_allclose(_next_gain(0.4, 0.1), 0.025)
    assert _next_gain(0.1, 0.2) == 0.2
    assert _next_gain(0.1, -0.2) == -0.2
    assert math.isnan(_next_gain(0.1, math.nan))
