"""The linear model beside an ensemble's networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ridge import dense_ridge
from scipy import stats
from sklearn.linear_model import Ridge

import jaxmdn
from jaxmdn import train
from jaxmdn.train.data import Rows
from jaxmdn.train.linear import PENALTIES, beside, fit_linear, hold_out

pytestmark = pytest.mark.usefixtures("as_users_run")


def rows(count=40, inputs=5, noise=0.5):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(count, inputs)) + 2.0
    slope = np.array([[1.0, 0.0], [-2.0, 0.0], *[[0.0, 0.1]] * (inputs - 2)])
    return x, x @ slope + 1.0 + noise * rng.normal(size=(count, 2)), rng.uniform(0.2, 2, count)


def test_ridge_regression_against_dense_matrices():
    """Two outputs, whose penalties differ; weighted rows."""
    x, y, weights = rows()
    found = fit_linear(x, y, weights)
    for output in range(2):
        slope, intercept, scale = dense_ridge(x, y[:, output], weights)
        own = {name: np.asarray(part)[..., output] for name, part in vars(found).items()}
        np.testing.assert_allclose(own["slope"], slope, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(own["intercept"], intercept, rtol=1e-5)
        np.testing.assert_allclose(own["scale"], scale, rtol=1e-5)
    mean = jax.jit(lambda found, x: found(x))(found, np.float32(x))
    np.testing.assert_allclose(mean[:, 1], x @ slope + intercept, rtol=1e-4)


def test_more_inputs_than_rows_and_inputs_without_meaning():
    """The penalty keeps some freedom; of noise alone hardly more than the mean is left."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 80)), rng.normal(size=(30, 1))
    found = fit_linear(x, y, np.ones(30))
    slopes = [Ridge(alpha=30 * penalty).fit(x, y[:, 0]).coef_ for penalty in PENALTIES]
    own = np.asarray(found.slope)[:, 0]
    error = [np.abs(own - slope).max() for slope in slopes]
    assert min(error) < 1e-5
    assert 0.5 < float(found.scale[0]) < 1.5
    assert (rng.normal(size=(500, 80)) @ own).std() < 0.5


def test_rows_are_predicted_by_the_other_folds():
    x, y, weights = rows()
    folds = np.arange(40) % 4
    loc, scale = map(np.asarray, hold_out(Rows(x, y, weights), folds))
    for fold in range(4):
        held = folds == fold
        slope, intercept, own = dense_ridge(x[~held], y[~held, 1], weights[~held])
        np.testing.assert_allclose(loc[held, 1], x[held] @ slope + intercept, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(scale[held, 1], own, rtol=1e-4)


@pytest.mark.parametrize("head", ["diagonal", "full", "low_rank", "independent"])
def test_its_density_is_of_the_networks_family(head):
    """One component at the linear mean, against SciPy."""
    made = {
        "independent": lambda: jaxmdn.FactorizedHead(("laplace", "normal"), 3),
    }.get(head, lambda: jaxmdn.NormalHead(3, 2, covariance=head))()
    raw = np.random.default_rng(0).normal(size=(2, 4, made.num_outputs)).astype(np.float32)
    loc, scale = np.arange(8.0).reshape(4, 2), np.array([0.5, 2.0])
    y = loc + np.array([0.7, -1.0])

    @jax.jit
    def log_prob(raw, loc, scale, y):
        density = beside(made(raw), loc, scale)
        assert density.batch_shape == (1, 4)
        return jaxmdn.log_prob(density, y)

    first = stats.laplace if head == "independent" else stats.norm
    expected = first.logpdf(0.7, 0, 0.5) + stats.norm.logpdf(-1.0, 0, 2.0)
    found = log_prob(raw, *(np.float32(part) for part in (loc, scale, y)))
    np.testing.assert_allclose(found, np.full((1, 4), expected), rtol=1e-5)


def test_its_program_serves_any_number_of_rows(user_errors):  # annotations ask for numbers
    """As exports need it."""
    head = jaxmdn.NormalHead(2, 1)

    def program(raw, loc):
        density = beside(head(raw[None]), loc, jnp.ones(1))
        return density.logits, density.components.loc

    rows = jax.export.symbolic_shape("rows")[0]
    shapes = ((rows, head.num_outputs), (rows, 1))
    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    logits, loc = jax.export.export(jax.jit(program))(*given).out_avals
    assert logits.shape == (1, rows, 1)
    assert loc.shape == (1, rows, 1, 1)


def test_few_rows_of_a_linear_truth_are_described_nearly_as_well_as_by_it():
    """Forty rows and hardly any training: within 0.15 nats of the truth."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2040, 4))
    mean = x @ [[1.0], [-2.0], [0.5], [0.0]]
    y = mean + 0.5 * rng.normal(size=(2040, 1))
    recipe = train.Recipe(folds=5, cycles=(5,), hidden_features=(16,))
    result = train.fit_ensemble(x[:40], y[:40], recipe=recipe, progress=False)
    assert result.temperature.weights[2] > 0.5
    truth = np.mean(stats.norm.logpdf(y[40:], mean[40:], 0.5))
    assert np.asarray(result.log_prob(x[40:], y[40:])).mean() > truth - 0.15


def test_it_is_left_out_where_it_does_not_help():
    """A curve without a slope: the networks alone, calibrated alone, describe the held-out rows."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, size=(300, 1))
    y = np.cos(2 * x) + 0.05 * rng.normal(size=(300, 1))
    recipe = train.Recipe(folds=2, cycles=(30,), hidden_features=(32, 32))
    result = train.fit_ensemble(x, y, recipe=recipe, progress=False)
    assert result.linear is None
    assert result.temperature.weights.shape == (2,)
    found = np.asarray(jaxmdn.log_prob(result.out_of_fold, jnp.asarray(y, jnp.float32)))
    assert -found.mean() < result.history["out_of_fold_nll"].min()


def test_many_rows_have_none(user_errors):
    recipe = train.Recipe()
    assert recipe.with_linear(399)
    assert not recipe.with_linear(400)
    assert train.Recipe(linear=True).with_linear(10**6)
    assert not train.Recipe(linear=False).with_linear(10)
    with pytest.raises(TypeError, match="Recipe: linear must be True, False or None, got 'no'"):
        train.Recipe(linear="no")
