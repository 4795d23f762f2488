"""Numbers that other mixture libraries get wrong, one test each, by independent oracles.

The docstrings name the library and its mistake.
"""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import special, stats

import jaxmdn
from jaxmdn import Mixture, NormalHead, components


@pytest.mark.parametrize("diagonal", [0.1, 0.01])
def test_density_with_a_tiny_precision_factor_integrates_to_one(diagonal):
    """sbi: a jitter joins the precision but not its factor; mass 0.95 or 0.03 at D = 10."""
    D = 10
    whitening = np.tril(np.random.default_rng(0).normal(size=(1, D, D)) * diagonal, -1)
    whitening = whitening + diagonal * np.eye(D)
    normal = components.FullNormal(loc=jnp.zeros((1, D)), whitening_tril=jnp.asarray(whitening))
    mixture = Mixture(logits=jnp.zeros(1), components=normal)
    # Draws from the exact density, weighted by the ratio: their mean is the mass.
    factor = np.linalg.inv(whitening[0])
    noise = np.random.default_rng(1).normal(size=(200, D))
    log_exact = stats.norm.logpdf(noise).sum(-1) - np.linalg.slogdet(factor)[1]
    ratio = np.exp(jaxmdn.log_prob(mixture, jnp.asarray(noise @ factor.T)) - log_exact)
    np.testing.assert_allclose(ratio, 1.0, rtol=1e-9)


def test_leading_block_of_the_whitening_matrix_is_the_leading_marginal():
    """sbi, ``condition``: takes a sub-block of the factor for dimensions where that is wrong."""
    rng = np.random.default_rng(2)
    mixture = oracles.random_mixture(rng, "full", 2, 3)
    covariances = oracles.of_mixture(mixture).covariances
    whitening = np.asarray(mixture.components.whitening_tril)[:, :2, :2]
    np.testing.assert_allclose(
        np.linalg.inv(np.swapaxes(whitening, -1, -2) @ whitening),
        covariances[:, :2, :2],
        rtol=1e-10,
    )
    # And the last row is the conditional of y_3: precision 1 / W_33^2, slopes -W_3j / W_33.
    row = np.asarray(mixture.components.whitening_tril)[:, 2]
    lead = covariances[:, :2, :2]
    slopes = np.linalg.solve(lead, covariances[:, :2, 2:])[..., 0]
    rest = covariances[:, 2, 2] - np.einsum("ki,ki->k", slopes, covariances[:, :2, 2])
    np.testing.assert_allclose(row[:, 2] ** -2, rest, rtol=1e-10)
    np.testing.assert_allclose(-row[:, :2] / row[:, 2:], slopes, rtol=1e-9)


def test_every_context_draws_from_its_own_parameters():
    """pyknos: rows repeated twice, so that all samples come from context 0."""
    loc = 100.0 * jnp.arange(5.0)[:, None, None] + jnp.zeros((5, 2, 1))
    normal = components.Normal(loc=loc, scale=jnp.ones((5, 2, 1)))
    samples = jaxmdn.sample(
        jax.random.key(0), Mixture(logits=jnp.zeros((5, 2)), components=normal), (50,)
    )
    np.testing.assert_allclose(np.mean(samples, axis=0)[:, 0], 100.0 * np.arange(5), atol=1.0)


def test_dimensions_have_their_own_loc_and_scale_and_nothing_underflows():
    """pytorch-mdn: all dimensions read dimension 0; products of probabilities underflow."""
    rng = np.random.default_rng(3)
    D = 300
    loc, scale = 10 * rng.normal(size=(2, D)), np.exp(rng.normal(size=(2, D)))
    normal = components.Normal(
        loc=jnp.asarray(loc, jnp.float32), scale=jnp.asarray(scale, jnp.float32)
    )
    mixture = Mixture(logits=jnp.zeros(2, jnp.float32), components=normal)
    y = rng.normal(size=D)
    parts = stats.norm.logpdf(y, loc, scale).sum(-1)
    expected = special.logsumexp(parts) - np.log(2)
    assert expected < -1000
    np.testing.assert_allclose(
        jaxmdn.log_prob(mixture, jnp.asarray(y, jnp.float32)), expected, rtol=1e-5
    )
    samples, index = jaxmdn.sample(jax.random.key(0), mixture, (2000,), return_index=True)
    z = (np.asarray(samples) - loc[index]) / scale[index]
    assert np.all(np.abs(np.mean(z, axis=0)) < 5 / np.sqrt(2000))
    assert np.all(np.abs(np.std(z, axis=0) - 1) < 5 / np.sqrt(2 * 2000))


def test_isotropic_scales_stay_with_their_components():
    """tonyduan/mixture-density-network: a reshape scrambles scales across components."""
    head = NormalHead(3, 4, covariance="isotropic", scale_link="exp", min_scale=0.0)
    raw = np.zeros(head.num_outputs)
    raw[-3:] = np.log([0.1, 1.0, 10.0])
    raw[:3] = [0.0, -1.0, -2.0]
    y = np.array([0.3, -0.2, 0.1, 2.0])
    parts = [
        np.log(weight) + stats.norm.logpdf(y, 0.0, scale).sum()
        for weight, scale in zip(special.softmax(raw[:3]), [0.1, 1.0, 10.0], strict=True)
    ]
    value = jaxmdn.component_log_prob(head(jnp.asarray(raw)), jnp.asarray(y))
    np.testing.assert_allclose(value + np.log(special.softmax(raw[:3])), parts, rtol=1e-12)


def test_no_index_beyond_the_last_component(monkeypatch):
    """tonyduan/mixture-density-network: ``searchsorted`` returns K when rounding leaves a gap."""
    largest = np.nextafter(np.float32(1), np.float32(0))
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.full(shape, largest))
    for K in (7, 49):  # weights 1 / K that do not add up to one
        logits = jnp.zeros((1, K), jnp.float32)
        index = components.categorical.draw_index(jax.random.key(0), logits, (1,))
        assert index[0] == K - 1


def test_cdf_takes_a_standard_deviation():
    """CDE: the cdf passes a standard deviation where a variance is due."""
    loc, scale, weights = np.array([[-1.0], [4.0]]), np.array([[3.0], [0.2]]), np.array([0.3, 0.7])
    normal = components.Normal(loc=jnp.asarray(loc), scale=jnp.asarray(scale))
    mixture = Mixture(logits=jnp.log(jnp.asarray(weights)), components=normal)
    y = np.linspace(-9, 9, 7)[:, None]
    expected = stats.norm.cdf(y, loc.T, scale.T) @ weights
    np.testing.assert_allclose(jaxmdn.cdf(mixture, jnp.asarray(y))[:, 0], expected, rtol=1e-12)


@pytest.mark.parametrize("covariance", oracles.COVARIANCES)
def test_scales_are_standard_deviations(covariance):
    """zuko: stores a log-variance where a log standard deviation is read."""
    head = NormalHead(1, 2, covariance=covariance, scale_link="exp", min_scale=0.0)
    raw = np.zeros(head.num_outputs)
    raw[oracles.layout(head)["scale"]] = np.log(5.0)
    samples = jaxmdn.sample(jax.random.key(1), head(jnp.asarray(raw)), (4000,))
    np.testing.assert_allclose(np.std(samples, axis=0), 5.0, rtol=5 / np.sqrt(2 * 4000))
    np.testing.assert_allclose(jaxmdn.variance(head(jnp.asarray(raw))), 25.0, rtol=1e-12)


def test_likelihood_is_exact_and_blind_to_the_order_of_rows():
    """pytorch_tabular, XGBoostLSS: Gumbel noise in the likelihood, drawn by the row's position."""
    rng = np.random.default_rng(5)
    head = NormalHead(3, 2)
    raw, y = oracles.random_raw(rng, head, (6,)), oracles.random_target(rng, head, (6,))
    order = rng.permutation(6)
    value = jaxmdn.nll(head, raw, y, reduction="none")
    shuffled = jaxmdn.nll(head, raw[order], y[order], reduction="none")
    np.testing.assert_array_equal(shuffled, value[order])
    np.testing.assert_allclose(value, -oracles.parameters(head, raw).log_prob(y), rtol=1e-12)


def test_rows_choose_their_components_independently():
    """distrax ``MixtureOfTwo``: one Bernoulli draw shared by the whole batch."""
    normal = components.Normal(loc=jnp.zeros((400, 2, 1)), scale=jnp.ones((400, 2, 1)))
    mixture = Mixture(logits=jnp.zeros((400, 2)), components=normal)
    _, index = jaxmdn.sample(jax.random.key(2), mixture, (20,), return_index=True)
    share = np.mean(index, axis=-1)  # of 400 rows in each draw
    assert np.all(np.abs(share - 0.5) < 5 * 0.5 / np.sqrt(400))
    assert np.abs(np.corrcoef(np.asarray(index)[:, :2].T)[0, 1]) < 0.9


def test_a_dead_component_may_hold_infinities():
    """Many: ``0 * inf`` from sampling every component and masking."""
    loc, scale = jnp.asarray([[jnp.inf], [1.0]]), jnp.asarray([[jnp.inf], [2.0]])
    mixture = Mixture(
        logits=jnp.asarray([-jnp.inf, 0.0]), components=components.Normal(loc=loc, scale=scale)
    )
    assert jaxmdn.mean(mixture) == 1
    assert jaxmdn.variance(mixture) == 4
    assert jaxmdn.covariance(mixture) == 4
    assert np.all(np.isfinite(jaxmdn.sample(jax.random.key(0), mixture, (100,))))


def test_floor_of_the_scale_is_the_one_asked_for():
    """Many: ``elu + 1 + 1e-15`` is a floor of 1e-15, and none at all in float32."""
    head = NormalHead(1, 1, min_scale=0.01)
    raw = jnp.asarray([0.0, 0.0, -1e4], jnp.float32)
    np.testing.assert_allclose(head(raw).components.scale, 0.01, rtol=1e-6)
    value, slope = jax.value_and_grad(lambda raw: jaxmdn.nll(head, raw, jnp.zeros(1, jnp.float32)))(
        raw
    )
    np.testing.assert_allclose(value, -stats.norm.logpdf(0, 0, 0.01), rtol=1e-6)
    assert np.all(np.isfinite(slope))


def test_variance_far_from_zero_does_not_cancel():
    """Many: ``E[y^2] - E[y]^2`` is zero or negative when the mean is large."""
    loc = jnp.asarray([[1e6], [1e6 + 2]], jnp.float32)
    normal = components.Normal(loc=loc, scale=jnp.full((2, 1), 0.5, jnp.float32))
    mixture = Mixture(logits=jnp.zeros(2, jnp.float32), components=normal)
    np.testing.assert_allclose(jaxmdn.variance(mixture), 0.25 + 1.0, rtol=1e-6)
    np.testing.assert_allclose(jaxmdn.covariance(mixture), [[0.25 + 1.0]], rtol=1e-6)
    # Nor does a mean that rounding has moved count as variance (up to 1 % here).
    rng = np.random.default_rng(0)
    loc, logits = (np.asarray(rng.normal(size=(40, 5)), np.float32) for _ in range(2))
    loc = np.float32(1e6) + 3 * loc
    normal = components.Normal(
        loc=jnp.asarray(loc[..., None]), scale=jnp.full((40, 5, 1), 0.5, jnp.float32)
    )
    mixture = Mixture(logits=jnp.asarray(logits), components=normal)
    weights, loc = special.softmax(logits.astype(float), axis=-1), loc.astype(float)
    mean = np.sum(weights * loc, axis=-1)
    variance = 0.25 + np.sum(weights * (loc - mean[:, None]) ** 2, axis=-1)
    np.testing.assert_allclose(jaxmdn.variance(mixture)[:, 0], variance, rtol=1e-6)
    np.testing.assert_allclose(jaxmdn.covariance(mixture)[:, 0, 0], variance, rtol=1e-6)
    error = np.asarray(jaxmdn.mean(mixture), float)[:, 0] - mean
    assert np.all(np.abs(error) < 0.51 * np.spacing(np.float32(1e6)))


@pytest.mark.parametrize("logits", [[-np.inf, 0.0], [-np.inf, -np.inf]])
def test_gradients_without_weights_are_numbers(logits):
    """Many: NaN gradients at a weight of zero, or where every component is ``-inf``."""

    def value(logits, loc):
        normal = components.Normal(loc=loc, scale=jnp.ones((2, 1)))
        return jaxmdn.log_prob(Mixture(logits=logits, components=normal), jnp.asarray([0.5]))

    slopes = jax.grad(value, argnums=(0, 1))(jnp.asarray(logits), jnp.asarray([[0.0], [2.0]]))
    alive = np.isfinite(logits)
    np.testing.assert_array_equal(slopes[0], [0.0, 0.0])
    np.testing.assert_allclose(slopes[1][:, 0], np.where(alive, [0.5, -1.5], 0.0), rtol=1e-12)


def test_pooled_low_rank_components_keep_their_covariances():
    """Broadcasting a loading onto more factors repeats it, and doubles its covariance."""
    rng = np.random.default_rng(6)

    def mixture(rank):
        loc, factor = rng.normal(size=(1, 2)), rng.normal(size=(1, 2, rank))
        low_rank = components.LowRankNormal(
            loc=jnp.asarray(loc), factor=jnp.asarray(factor), scale=jnp.ones((1, 2))
        )
        return Mixture(logits=jnp.zeros(1), components=low_rank), loc[0], factor[0]

    (one, *first), (two, *second) = mixture(1), mixture(2)
    y = np.array([0.3, -0.7])
    weights = np.array([[0.25, 0.75], [0.5, 0.5]])
    parts = [
        stats.multivariate_normal(loc, factor @ factor.T + np.eye(2)).logpdf(y)
        for loc, factor in (first, second)
    ]
    expected = special.logsumexp(parts, b=weights, axis=-1)
    pooled = jaxmdn.merge([one, two], weights=jnp.asarray(weights))
    np.testing.assert_allclose(jaxmdn.log_prob(pooled, jnp.asarray(y)), expected, rtol=1e-12)
