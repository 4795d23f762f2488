"""Pictures: what is drawn, not how it looks (that is for eyes)."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import stats

import jaxmdn
from jaxmdn import plots

pytestmark = pytest.mark.usefixtures("as_users_run")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def predict(x):
    """y | x ~ N(x, 0.5^2)."""
    normal = jaxmdn.components.Normal(loc=x[:, None, :], scale=jnp.full((1, 1, 1), 0.5))
    return jaxmdn.Mixture(logits=jnp.zeros((x.shape[0], 1)), components=normal)


def test_conditional_density_draws_the_density():
    x, y = np.linspace(0, 1, 7), np.linspace(-1, 2, 11)
    ax = plots.conditional_density(predict, x, y, data=(x[:, None], y[:7]), ylabel="price")
    mesh = ax.collections[0]
    expected = stats.norm.pdf(y[:, None], x[None, :], 0.5)
    np.testing.assert_allclose(np.asarray(mesh.get_array()).reshape(11, 7), expected, rtol=1e-4)
    assert ax.get_ylabel() == "price"
    np.testing.assert_allclose(ax.lines[0].get_xdata(), x)


def test_pit_histogram_counts_and_band():
    values = np.random.default_rng(0).uniform(size=500)
    ax = plots.pit_histogram(values, num_bins=10)
    heights = [bar.get_height() for bar in ax.patches if bar.get_width() < 0.5]
    counts, _ = np.histogram(values, bins=10, range=(0, 1))
    np.testing.assert_allclose(heights, counts / 50)
    low, high = plots._binomial_band(500, 0.1, 0.95)
    assert (low, high) == tuple(stats.binom.interval(0.95, 500, 0.1))


@pytest.mark.parametrize(("count", "share", "level"), [(10, 0.5, 0.9), (10_000, 0.05, 0.99)])
def test_binomial_band_against_scipy(count, share, level):
    assert plots._binomial_band(count, share, level) == stats.binom.interval(level, count, share)


def test_training_curve_handles_missing_validation():
    history = {"train_nll": [np.nan, 2.0, 1.0], "valid_nll": [np.nan] * 3}
    ax = plots.training_curve(history, best_epoch=2)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["training", "kept: epoch 2"]


def test_predicted_against_actual_uses_mean_and_deviation():
    x = jnp.linspace(0, 1, 20)[:, None]
    ax = plots.predicted_against_actual(predict(x), np.asarray(x) + 0.1, name="price")
    points = ax.lines[0]
    order = np.argsort(points.get_xdata())
    np.testing.assert_allclose(points.get_xdata()[order], np.linspace(0, 1, 20), atol=1e-6)
    np.testing.assert_allclose(points.get_ydata()[order], np.linspace(0.1, 1.1, 20), atol=1e-6)
    bars = ax.collections[0].get_segments()
    np.testing.assert_allclose([abs(b[1][0] - b[0][0]) for b in bars], 1.0, rtol=1e-5)


def test_every_function_draws_into_the_axes_it_is_given():
    _, ax = plt.subplots()
    x = jnp.linspace(0, 1, 5)[:, None]
    assert plots.pit_histogram(jax.random.uniform(jax.random.key(0), (50,)), ax=ax) is ax
    assert plots.conditional_density(predict, np.ravel(x), np.ravel(x), ax=ax) is ax
    assert plots.predicted_against_actual(predict(x), np.asarray(x), ax=ax) is ax
    assert plots.training_curve({"train_nll": [1.0], "valid_nll": [2.0]}, ax=ax) is ax
