"""Targets on a grid: found, said, scored and trained by the probabilities of cells."""

import numpy as np
import pytest
from flax import nnx
from scipy import stats
from test_train import quick_fit, small_model

import jaxmdn
from jaxmdn import train
from jaxmdn.train.targets import grid_steps

pytestmark = pytest.mark.usefixtures("as_users_run")
RECIPE = train.Recipe(folds=2, cycles=(2,), hidden_features=(8,))


def rounded(count=200, step=2.0):
    """Whole multiples of a step, plus one; their spread is about two steps."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 2))
    y = 2 * step * x[:, :1] + step * rng.normal(size=(count, 1))
    return x, step * np.round(y / step) + 1


def cells_by_hand(density, y, width, cdf):
    """Differences of the components' distribution functions, in NumPy."""
    own = density.components
    own = getattr(own, "parts", (own,))[0]
    loc, scale = (np.asarray(part, float)[..., 0] for part in (own.loc, own.scale))
    ends = [cdf((y + half - loc) / scale) for half in (-width / 2, width / 2)]
    return np.log(np.sum(np.asarray(density.weights(), float) * (ends[1] - ends[0]), axis=-1))


def test_fit_scores_and_trains_the_probabilities_of_cells(tmp_path):
    x, y = rounded()
    options = {"validation": (x[:40], y[:40]), "target": "grid", "num_epochs": 20}
    result = quick_fit(small_model(), x[40:], y[40:], **options)
    assert result.cells.tolist() == [2.0]
    expected = cells_by_hand(result.predict(x), y, 2.0, stats.norm.cdf)
    found = result.log_prob(x, y)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        result.history["valid_nll"][result.best_epoch], -expected[:40].mean(), rtol=1e-4
    )
    grid = np.arange(-29.0, 31.0, 2.0)
    everywhere = [result.log_prob(x[:1], np.full((1, 1), place)) for place in grid]
    np.testing.assert_allclose(np.exp(everywhere).sum(), 1.0, rtol=1e-4)
    loaded = train.checkpoint.load(train.checkpoint.save(tmp_path / "saved", result))
    assert np.array_equal(loaded.log_prob(x, y), found)


def test_an_ensemble_scores_and_trains_the_probabilities_of_cells(tmp_path):
    x, y = rounded(80)
    result = train.fit_ensemble(x, y, recipe=RECIPE, target="grid", progress=False)
    density = result.predict(x)
    expected = cells_by_hand(density, y, 2.0, stats.t(5).cdf)
    np.testing.assert_allclose(result.log_prob(x, y), expected, rtol=1e-3, atol=1e-4)
    own = cells_by_hand(result.out_of_fold, y, 2.0, stats.t(5).cdf)
    np.testing.assert_allclose(result.history["out_of_fold_nll"].min(), -own.mean(), rtol=1e-4)
    assert float(result.floor[0]) == pytest.approx(1e-3), "rounding is in the cells already"
    loaded = train.checkpoint.load(train.checkpoint.save(tmp_path / "saved", result))
    assert np.array_equal(loaded.log_prob(x, y), result.log_prob(x, y))


def test_a_coarse_grid_is_said_once():
    x, y = rounded(60)
    with pytest.warns(UserWarning, match=r"^fit: column 0 of y lies on a grid of step 2 .*'grid'"):
        quick_fit(small_model(), x, y, num_epochs=1, refit=False)


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ([0.0, 10.0], 0.0),
        ([3.0], 0.0),
        ([0.0, 1.0, 2.0, 5.0], 1.0),
        ([0.0, 1.0, 2.3, 5.0], 0.0),
        ([1.1, 0.3, 0.7], 0.4),
    ],
)
def test_a_grid_has_three_values_and_one_step(values, step):
    np.testing.assert_allclose(grid_steps(np.array(values)[:, None]), [step], rtol=1e-9)


@pytest.mark.parametrize(
    ("head", "step", "target", "message"),
    [
        (jaxmdn.NormalHead(2, 1), 2.0, "cells", "fit: target must be one of"),
        (jaxmdn.NormalHead(2, 1), 0.0, "grid", "fit: target='grid' needs targets on a grid, but"),
        (jaxmdn.FactorizedHead(("poisson",), 2), 2.0, "grid", "fit: target='grid' is for real"),
    ],
)
def test_errors(user_errors, head, step, target, message):
    x, y = rounded(60)
    y = np.abs(y) if step else np.abs(y) + np.abs(x[:, :1])
    with pytest.raises(ValueError, match=message):
        train.fit(jaxmdn.nn.MDN(2, head, rngs=nnx.Rngs(0)), x, y, target=target, progress=False)
