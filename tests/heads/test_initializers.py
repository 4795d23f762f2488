"""A network that starts from ``from_targets`` starts from the data's own moments."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import special

import jaxmdn
from jaxmdn.heads.initializers import from_targets

N = 240
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
MIXING = np.array([[1.5, 0.0, 0.0], [0.8, 1.0, 0.0], [-0.5, 0.4, 1.2]])
NOISE = RNG.normal(size=(N, 3))
WEIGHTS = RNG.uniform(0.0, 2.0, N)
DTYPES = (jnp.float64, jnp.float32)


def correlated(event_dim, dtype=jnp.float64):
    """Correlated rows with a mean far from zero; float32 keeps seven digits of them."""
    y = (
        NOISE[:, :event_dim] @ MIXING[:event_dim, :event_dim].T
        + np.array([5.0, -3.0, 1.0])[:event_dim]
    )
    return jnp.asarray(y, dtype)


def three_clusters(event_dim):
    centres = np.array([[-10.0, 0.0], [0.0, 10.0], [10.0, -5.0]])[:, :event_dim]
    labels = np.arange(N) % 3
    return centres, jnp.asarray(centres[labels] + 0.5 * NOISE[:, :event_dim])


def start(head, y, weights=None, key=KEY):
    raw = from_targets(key, head, y, weights=weights)
    assert raw.shape == (head.num_outputs,)
    assert np.all(np.isfinite(raw))
    return head(raw)


def check_moments(head, y, weights=None):
    """The promise of the docstring; covariances are computed with a relative jitter of 1e-6."""
    density = oracles.of_mixture(start(head, y, weights))
    mean, covariance = density.mean(), density.covariance()
    y = np.asarray(y, np.float64)
    expected = np.cov(y.T, ddof=0, aweights=weights).reshape(covariance.shape)
    unit = np.sqrt(np.trace(expected))
    np.testing.assert_allclose(mean, np.average(y, axis=0, weights=weights), atol=2e-6 * unit)
    tolerance = {"rtol": 1e-5, "atol": 1e-5 * unit**2}
    if head.covariance == "full" or head.num_components > head.event_dim:
        np.testing.assert_allclose(covariance, expected, **tolerance)
    elif head.covariance != "isotropic":
        np.testing.assert_allclose(np.diag(covariance), np.diag(expected), **tolerance)
    np.testing.assert_allclose(np.trace(covariance), np.trace(expected), **tolerance)


@pytest.mark.parametrize(
    ("covariance", "num_components"),
    [*itertools.product(oracles.COVARIANCES, [3]), ("full", 1), ("diagonal", 1), ("diagonal", 8)],
)
def test_moments_of_the_data_are_recovered(covariance, num_components):
    head = jaxmdn.NormalHead(num_components, 2, covariance=covariance)
    check_moments(head, correlated(2))
    check_moments(head, correlated(2), jnp.asarray(WEIGHTS))


@pytest.mark.parametrize(
    ("covariance", "event_dim", "dtype"),
    [("diagonal", 1, jnp.float64), ("full", 3, jnp.float32), ("low_rank", 3, jnp.float32)],
)
def test_moments_with_a_shared_shape(covariance, event_dim, dtype):
    head = jaxmdn.NormalHead(3, event_dim, covariance=covariance, tied=True)
    y = correlated(event_dim, dtype)
    assert from_targets(KEY, head, y).dtype == dtype
    check_moments(head, y)


@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "low_rank"])
def test_strong_correlation_needs_smaller_scales(covariance):
    """What lies within the groups exceeds the data along the thin direction: it must shrink."""
    y = NOISE[:, :1] + NOISE[:, 1:2] * np.array([0.35, -0.35])
    check_moments(jaxmdn.NormalHead(3, 2, covariance=covariance), jnp.asarray(y))


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("covariance", "num_components", "event_dim", "tied", "dtype"),
    list(itertools.product(oracles.COVARIANCES, [1, 3, 8], [1, 2, 3], [False, True], DTYPES)),
)
def test_moments_for_every_head(covariance, num_components, event_dim, tied, dtype):
    head = jaxmdn.NormalHead(num_components, event_dim, covariance=covariance, tied=tied)
    check_moments(head, correlated(event_dim, dtype), jnp.asarray(WEIGHTS, dtype))


@pytest.mark.parametrize("covariance", oracles.COVARIANCES)
def test_components_land_on_the_modes(covariance):
    centres, y = three_clusters(2)
    head = jaxmdn.NormalHead(3, 2, covariance=covariance)
    check_moments(head, y)
    density = oracles.of_mixture(start(head, y))
    np.testing.assert_allclose(density.weights, 1 / 3, atol=1e-12)
    order = np.argsort(density.loc[:, 0])
    # Sampling error of a mean of 80 is 0.06; matching the covariance moves a location a little.
    np.testing.assert_allclose(density.loc[order], centres, atol=0.3)


def test_quantile_groups_of_a_scalar_target():
    _, y = three_clusters(1)
    density = oracles.of_mixture(start(jaxmdn.NormalHead(3, 1), y))
    np.testing.assert_allclose(density.weights, 1 / 3, atol=1e-12)
    groups = np.sort(np.asarray(y)[:, 0]).reshape(3, -1)
    np.testing.assert_allclose(density.loc[:, 0], groups.mean(axis=1), atol=0.05)
    within = groups.var(axis=1).mean()
    variance = density.covariances[:, 0, 0]
    assert np.all((variance > 0.5 * within) & (variance < 2.0 * within))


RAMP = np.linspace(0.0, 12.0, N)
DEGENERATE = {
    "ties": np.repeat([[0.0, 1.0], [2.0, 1.5]], [N - 1, 1], axis=0),
    "constant column": np.stack([RAMP, np.full(N, 7.0)], axis=1),
    "collinear": RAMP[:, None] * np.array([1.0, -2.0]),
    "one distinct row": np.full((N, 2), 3.0),
    "far from zero": 1e6 + NOISE[:, :2],
}


@pytest.mark.parametrize("covariance", oracles.COVARIANCES)
def test_degenerate_data_gives_a_finite_start(covariance):
    head = jaxmdn.NormalHead(3, 2, covariance=covariance)
    for name, y in DEGENERATE.items():
        mixture = start(head, jnp.asarray(y))
        mean = oracles.of_mixture(mixture).mean()
        np.testing.assert_allclose(mean, y.mean(axis=0), rtol=1e-9, atol=1e-9, err_msg=name)
        assert np.all(np.isfinite(jaxmdn.log_prob(mixture, jnp.asarray(y)))), name


@pytest.mark.parametrize(("covariance", "rows"), [("full", 1), ("full", 2), ("diagonal", 2)])
def test_more_components_than_rows(covariance, rows):
    y = np.array([[4.0, -1.0], [5.0, 1.0]])[:rows]
    mixture = start(jaxmdn.NormalHead(3, 2, covariance=covariance), jnp.asarray(y))
    np.testing.assert_allclose(oracles.of_mixture(mixture).mean(), y.mean(axis=0), atol=1e-9)


def test_rows_of_weight_zero_do_not_count():
    head = jaxmdn.NormalHead(3, 2, covariance="full")
    y = correlated(2)
    weights = jnp.where(jnp.arange(N) < 200, 1.0, 0.0)
    outlier = jnp.where(weights[:, None] > 0, y, 1e9)
    check_moments(head, outlier, weights)


def test_min_weight_is_respected():
    y = jnp.concatenate([correlated(2)[:-2], jnp.full((2, 2), 60.0)])  # two rows far away
    head = jaxmdn.NormalHead(3, 2, covariance="full", min_weight=0.2)
    check_moments(head, y)
    assert oracles.of_mixture(start(head, y)).weights.min() >= 0.2
    free = jaxmdn.NormalHead(3, 2, covariance="full")
    assert oracles.of_mixture(start(free, y)).weights.min() < 0.05


def scales(mixture):
    """The numbers the scale link produced: ``1 / W_dd`` for full covariance."""
    if hasattr(mixture.components, "scale"):
        return np.asarray(mixture.components.scale)
    return 1.0 / np.diagonal(np.asarray(mixture.components.whitening_tril), axis1=-2, axis2=-1)


FAR_FLOOR = ({"min_scale": 10.0}, 10.0, 10.2)  # far above the data's spread
FAR_BOUND = ({"scale_link": jaxmdn.heads.links.Bounded(0.0, 0.01)}, 0.01, 0.0111)  # far below it


@pytest.mark.parametrize(
    ("covariance", "case"),
    [
        ("diagonal", FAR_FLOOR),
        ("full", FAR_FLOOR),
        ("full", FAR_BOUND),
        ("low_rank", FAR_BOUND),
    ],
)
def test_scales_out_of_reach_move_to_the_nearest_one_in_reach(covariance, case):
    options, low, high = case
    values = scales(start(jaxmdn.NormalHead(3, 2, covariance=covariance, **options), correlated(2)))
    assert np.all((values > low) & (values < high))


def test_class_conditional_recovers_every_class():
    counts = (120, 60, 60)
    labels = np.repeat(np.arange(3), counts)
    y = correlated(2) + jnp.asarray(labels[:, None] * np.array([20.0, -10.0]))
    head = jaxmdn.ClassConditionalHead(3, jaxmdn.NormalHead(3, 2, covariance="full"))
    density = start(head, jaxmdn.Labeled(jnp.asarray(labels), y))
    frequency = special.softmax(np.asarray(density.logits))
    np.testing.assert_allclose(frequency, (np.array(counts) + 1) / (N + 3), rtol=1e-12)
    classes = oracles.of_mixture(density.components)
    means, covariances = classes.mean(), classes.covariance()
    for c in range(3):
        rows = np.asarray(y)[labels == c]
        np.testing.assert_allclose(means[c], rows.mean(axis=0), atol=1e-8)
        np.testing.assert_allclose(covariances[c], np.cov(rows.T, ddof=0), rtol=1e-4, atol=1e-4)
    # Without labels every class starts from all rows.
    plain = start(head, y)
    means = oracles.of_mixture(plain.components).mean()
    np.testing.assert_allclose(means, np.tile(np.mean(y, axis=0), (3, 1)), atol=1e-8)
    np.testing.assert_allclose(plain.logits, 0.0)


def test_a_class_that_is_absent_or_has_no_weight_starts_from_all_rows():
    labels = jnp.arange(N) % 2
    y = jnp.where(labels[:, None] == 1, correlated(2), correlated(2) + 10.0)
    head = jaxmdn.ClassConditionalHead(3, jaxmdn.NormalHead(3, 2, covariance="full"))
    means = oracles.of_mixture(start(head, jaxmdn.Labeled(labels, y)).components).mean()
    np.testing.assert_allclose(means[2], np.mean(y, axis=0), atol=1e-8)
    weights = jnp.where(labels == 1, 0.0, 1.0)
    density = start(head, jaxmdn.Labeled(labels, y), weights)
    means = oracles.of_mixture(density.components).mean()
    expected = np.tile(np.mean(y[labels == 0], axis=0), (3, 1))
    np.testing.assert_allclose(means, expected, atol=1e-8)


@pytest.mark.parametrize("min_weight", [0.0, 0.1])
def test_categorical_recovers_frequencies(min_weight):
    head = jaxmdn.CategoricalHead(4, min_weight=min_weight)
    y = jnp.asarray(np.repeat([0, 1, 2], [50, 30, 20])[:, None])
    frequency = np.exp(jaxmdn.log_prob(start(head, y), jnp.arange(4)[:, None]))
    counts = np.array([51.0, 31.0, 21.0, 1.0]) / 104  # one pseudo-count each
    if min_weight == 0.0:
        np.testing.assert_allclose(frequency, counts, rtol=1e-6)
    assert frequency.min() >= min_weight
    assert np.all(np.diff(frequency) < 0)
    np.testing.assert_allclose(frequency[:3], counts[:3], atol=0.07)
    # The unit of the weights does not matter.
    small = np.exp(jaxmdn.log_prob(start(head, y, jnp.full(100, 1e-3)), jnp.arange(4)[:, None]))
    np.testing.assert_allclose(small, frequency, rtol=1e-5)


def test_the_key_decides():
    head = jaxmdn.NormalHead(8, 2)
    first, again = (from_targets(KEY, head, correlated(2)) for _ in range(2))
    other = from_targets(jax.random.key(1), head, correlated(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_errors(user_errors):
    head, y = jaxmdn.NormalHead(2, 2), correlated(2)
    labelled = jaxmdn.ClassConditionalHead(2, head)
    mislabelled = jaxmdn.Labeled(jnp.arange(2), y)
    for kind, message, arguments, options in (
        (ValueError, r"at least one row, got shape \[0, 2\]", (head, y[:0]), {}),
        (ValueError, r"y of shape \[\.\.\., 2\].*got \[240, 1\]", (head, y[:, :1]), {}),
        (ValueError, r"expected y of shape \[N, D\], got \[1, 240, 2\]", (head, y[None]), {}),
        (TypeError, "y must have a real floating dtype, got int64", (head, y.astype(int)), {}),
        (TypeError, "y must be an array, got float", (head, [[1.0, 2.0]]), {}),
        (ValueError, r"weights.*shape \[240\], got \[7\]", (head, y), {"weights": jnp.ones(7)}),
        (TypeError, "weights must have a real floating", (head, y), {"weights": jnp.arange(N)}),
        (ValueError, r"label.*\[240\], got \[2\]", (labelled, mislabelled), {}),
        (TypeError, "no initialiser for object; register one", (object(), y), {}),
    ):  # fmt: skip
        with pytest.raises(kind, match=message):
            from_targets(KEY, *arguments, **options)
