"""Pictures: what is drawn, not how it looks (that is for eyes)."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import stats

import jaxmdn
from jaxmdn import plots
from jaxmdn.plots.calibration import _binomial_band as binomial_band

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
    low, high = binomial_band(500, 0.1, 0.95)
    assert (low, high) == tuple(stats.binom.interval(0.95, 500, 0.1))


@pytest.mark.parametrize(("count", "share", "level"), [(10, 0.5, 0.9), (10_000, 0.05, 0.99)])
def test_binomial_band_against_scipy(count, share, level):
    assert binomial_band(count, share, level) == stats.binom.interval(level, count, share)


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


def test_looks_are_told_apart():
    """Of 24 lines, and none beside a density is drawn like it or like the observation."""
    for beside_others in (False, True):
        looks = [plots.style.look(k, beside_others=beside_others) for k in range(24)]
        assert len(set(looks)) == 24
    assert not {color for _, color in looks} & {plots.BLUE, plots.BLACK}


def test_tails_are_heavy_beside_the_median():
    claims = np.exp(2 * np.random.default_rng(0).normal(size=200))
    assert plots.style.is_heavy(claims)
    assert not plots.style.is_heavy(1 + claims.clip(0, 5))
    assert not plots.style.is_heavy(claims - claims.min())


@pytest.mark.nightly
def test_heavy_tails_have_a_logarithmic_axis():
    claims = np.exp(2 * np.random.default_rng(0).normal(size=(200, 1))).astype("f")
    normal = jaxmdn.components.LogNormal(loc=jnp.zeros((1, 1)), scale=jnp.full((1, 1), 2.0))
    mixture = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    assert plots.density(mixture, level=None).get_xscale() == "log"
    many = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (200, *leaf.shape)), mixture)
    ax = plots.predicted_against_actual(many, claims)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    ax = plots.predicted_against_actual(many, 1 + claims.clip(0, 5))
    assert ax.get_xscale() == "linear"


def two_modes():
    """0.5 N(0, 1) + 0.5 N(6, 2^2) in one dimension, no batch axes."""
    normal = jaxmdn.components.Normal(
        loc=jnp.array([[0.0], [6.0]]), scale=jnp.array([[1.0], [2.0]])
    )
    return jaxmdn.Mixture(logits=jnp.zeros(2), components=normal)


def plane():
    """Two correlated normals in a plane."""
    normal = jaxmdn.components.FullNormal.from_covariance(
        jnp.array([[0.0, 0.0], [5.0, 5.0]]),
        jnp.array([[[1.0, 0.8], [0.8, 1.0]], [[4.0, 0.0], [0.0, 1.0]]]),
    )
    return jaxmdn.Mixture(logits=jnp.log(jnp.array([0.75, 0.25])), components=normal)


def test_fan_chart_draws_the_quantiles():
    x = np.linspace(0, 1, 9)
    ax = plots.fan_chart(predict, x, levels=(0.5, 0.9), data=(x, x))
    np.testing.assert_allclose(ax.lines[0].get_ydata(), x, atol=1e-6)  # the median
    for area, level in zip(ax.collections, (0.9, 0.5), strict=True):  # wide ones lie below
        corners = area.get_paths()[0].vertices
        half = stats.norm.ppf((1 + level) / 2) * 0.5
        for end, sign in ((x[0], -1), (x[0], 1), (x[-1], 1)):
            gap = np.abs(corners - [end, end + sign * half]).max(axis=1)
            assert gap.min() < 1e-5
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["90%", "50%", "median", "data"]


def test_density_draws_the_curve_its_components_and_its_region():
    y = np.linspace(-4, 14, 2001)
    ax = plots.density(two_modes(), y, level=0.8, value=1.5, ylabel="price (EUR)")
    parts = 0.5 * stats.norm.pdf(y, 0, 1), 0.5 * stats.norm.pdf(y, 6, 2)
    ax.figure.canvas.draw()
    assert ax.get_legend().get_window_extent().y0 >= ax.get_window_extent().y1  # covers nothing
    by_label = {line.get_label(): line.get_ydata() for line in ax.lines}
    np.testing.assert_allclose(by_label["density"], sum(parts), atol=1e-6)
    np.testing.assert_allclose(by_label["components"], parts[0], atol=1e-6)
    # The smallest region of 80 %, by sorting a fine grid's points by height.
    heights = np.sort(sum(parts))[::-1]
    threshold = heights[np.searchsorted(np.cumsum(heights) * (y[1] - y[0]), 0.8)]
    bars = [line.get_xdata() for line in ax.lines if line.get_linewidth() == 4]
    covered = np.any([(y >= low) & (y <= high) for low, high in bars if low == low], axis=0)
    assert (covered == (sum(parts) >= threshold)).mean() > 0.998
    assert ax.get_xlabel() == "price (EUR)"

    # Of many components only the density is drawn.
    normal = jaxmdn.components.Normal(loc=jnp.zeros((21, 1)), scale=jnp.ones((21, 1)))
    ax = plots.density(jaxmdn.Mixture(logits=jnp.zeros(21), components=normal), y, level=None)
    assert [line.get_label() for line in ax.lines] == ["density"]


def test_contours_draw_regions_of_the_right_probability():
    draws = np.random.default_rng(0).multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 50)
    ax = plots.contours(plane(), levels=(0.5, 0.9), data=draws, xlabel="lon", ylabel="lat")
    # The level lines' heights: the density exceeds them with the probability they are named for.
    lines = next(c for c in ax.collections if len(c.get_linewidths()) and not c.get_fill())
    values = np.asarray(jaxmdn.log_prob(plane(), jaxmdn.sample(jax.random.key(1), plane(), 20_000)))
    for height, level in zip(sorted(lines.levels), (0.9, 0.5), strict=True):
        assert (values >= height).mean() == pytest.approx(level, abs=0.03)
    ellipses = [patch for patch in ax.patches if hasattr(patch, "angle")]
    # Principal axes of [[1, 0.8], [0.8, 1]]: variances 0.2 and 1.8 along the diagonals.
    np.testing.assert_allclose(ellipses[0].width, 2 * np.sqrt(0.2), rtol=1e-5)
    np.testing.assert_allclose(ellipses[0].height, 2 * np.sqrt(1.8), rtol=1e-5)
    assert abs(ellipses[0].angle) % 90 == pytest.approx(45, abs=1e-3)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("lon", "lat")


def test_reliability_curve_is_the_empirical_cdf_with_a_binomial_band():
    values = np.random.default_rng(0).beta(2, 2, size=400)
    ax = plots.reliability_curve(values, level=0.9, name="model")
    line = next(line for line in ax.lines if line.get_label() == "model")
    expected = [(values <= p).mean() for p in line.get_xdata()]
    np.testing.assert_allclose(line.get_ydata(), expected)
    corners = ax.collections[0].get_paths()[0].vertices
    middle = corners[np.isclose(corners[:, 0], 0.5)][:, 1]
    half = stats.norm.ppf(0.95) * np.sqrt(0.25 / 400)
    np.testing.assert_allclose([middle.min(), middle.max()], [0.5 - half, 0.5 + half], atol=1e-9)
    bands = len(ax.collections)
    plots.reliability_curve(values, name="again", ax=ax)
    assert len(ax.collections) == bands  # one band is enough


def test_component_usage_names_the_largest_first():
    history = {"mean_weight": np.array([[0.4, 0.6, 0.0], [0.1, 0.2, 0.7]])}
    ax = plots.component_usage(history, best_epoch=1)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["component 2", "component 1", "component 0", "kept: epoch 1"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.0, 0.7])
    with pytest.raises(ValueError, match="component_usage: history has no 'mean_weight'"):
        plots.component_usage({"train_nll": [1.0]})


def counts(rate):
    poisson = jaxmdn.components.Poisson(rate=jnp.full((1, 1), rate))
    return jaxmdn.Mixture(logits=jnp.zeros(1), components=poisson)


@pytest.mark.parametrize(
    ("rate", "stride"), [(3.0, 1), pytest.param(1e5, 10, marks=pytest.mark.nightly)]
)
def test_bars_of_counts_are_their_probabilities(rate, stride):
    ax = plots.probabilities(counts(rate), value=rate)
    places = np.array([bar.get_x() + bar.get_width() / 2 for bar in ax.patches])
    heights = [bar.get_height() for bar in ax.patches]
    np.testing.assert_allclose(heights, stats.poisson.pmf(np.round(places), rate), rtol=1e-3)
    assert (np.diff(np.round(places)) == stride).all()
    assert stats.poisson.cdf(places[-1], rate) > 0.998
    assert len(places) <= 201


def test_classes_have_their_names():
    density = jaxmdn.components.Categorical(logits=jnp.log(jnp.array([0.2, 0.5, 0.3])))
    ax = plots.probabilities(density, names=["a", "b", "c"], value=1.0)
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], [0.2, 0.5, 0.3], rtol=1e-6)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="expected one discrete density with D = 1, got batch"):
        plots.probabilities(two_modes())


@pytest.mark.parametrize("draw", [plots.density, plots.contours])
def test_batches_are_refused(draw):
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), plane())
    with pytest.raises(ValueError, match=r"got batch shape \[2\] and D = 2; pick a row"):
        draw(batch)


def test_every_function_draws_into_the_axes_it_is_given():
    _, ax = plt.subplots()
    x = jnp.linspace(0, 1, 5)[:, None]
    assert plots.fan_chart(predict, np.ravel(x), ax=ax) is ax
    assert plots.density(two_modes(), ax=ax) is ax
    assert plots.contours(plane(), ax=ax) is ax
    assert plots.reliability_curve(np.ravel(x), ax=ax) is ax
    assert plots.component_usage({"mean_weight": np.ones((2, 1))}, ax=ax) is ax
    assert plots.pit_histogram(jax.random.uniform(jax.random.key(0), (50,)), ax=ax) is ax
    assert plots.conditional_density(predict, np.ravel(x), np.ravel(x), ax=ax) is ax
    assert plots.predicted_against_actual(predict(x), np.asarray(x), ax=ax) is ax
    assert plots.training_curve({"train_nll": [1.0], "valid_nll": [2.0]}, ax=ax) is ax
