"""Class-conditional densities against Bayes' rule in NumPy; pooling against weighted averages."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import special, stats

import jaxmdn
from jaxmdn import Mixture, NormalHead
from jaxmdn.components import Normal

N, C, K, D = 4, 3, 2, 2
RNG = np.random.default_rng(0)
Y = jnp.asarray(2.0 * RNG.normal(size=(N, D)))
LABEL = jnp.asarray([0, 2, 1, 2])
HEAD = jaxmdn.ClassConditionalHead(C, NormalHead(K, D, covariance="full", tied=True))
DENSITY = HEAD(oracles.random_raw(RNG, HEAD, (N,)))
LOG_CLASS = special.log_softmax(np.asarray(DENSITY.logits), axis=-1)  # [N, C]
PER_CLASS = oracles.of_mixture(DENSITY.components)
LOG_CONDITIONAL = PER_CLASS.log_prob(Y[:, None])  # [N, C]
LOG_JOINT = LOG_CLASS + LOG_CONDITIONAL
FLAT = oracles.of_mixture(DENSITY)
ROWS = np.arange(N)


def first_row(density):
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[0]), density)


def close(actual, expected, rtol=1e-11):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-13)


def test_class_conditional_and_joint_against_numpy():
    close(jaxmdn.class_log_prob(DENSITY, LABEL), LOG_CLASS[ROWS, LABEL])
    close(jaxmdn.conditional_log_prob(DENSITY, LABEL, Y), LOG_CONDITIONAL[ROWS, LABEL])
    close(jaxmdn.joint_log_prob(DENSITY, LABEL, Y), LOG_JOINT[ROWS, LABEL])
    # Every class for every row at once: labels broadcast as leading axes do.
    every = jnp.asarray(np.broadcast_to(np.arange(C)[:, None], (C, N)))
    joint = np.asarray(jaxmdn.joint_log_prob(DENSITY, every, Y))
    close(joint, LOG_JOINT.T)
    close(special.logsumexp(joint, axis=0), jaxmdn.log_prob(DENSITY, Y))
    close(jaxmdn.log_prob(DENSITY, Y), special.logsumexp(LOG_JOINT, axis=-1))


def test_responsibilities_are_the_posterior_of_the_class():
    close(jaxmdn.responsibilities(DENSITY, Y), special.softmax(LOG_JOINT, axis=-1))
    close(jaxmdn.component_log_prob(DENSITY, Y), LOG_CONDITIONAL)


def test_a_parameter_that_is_fixed_has_no_axis_for_the_class():
    """One row's class is picked, and drawn, where ``df [1, 1]`` is shared by classes too."""
    family = jaxmdn.heads.Family("student_t", df=4.0)
    head = jaxmdn.ClassConditionalHead(C, jaxmdn.FactorizedHead((family,) * D, K))
    density = head(oracles.random_raw(RNG, head, (N,)))
    own = jax.jit(lambda density: density.components.take(LABEL))(density)
    assert own.batch_shape == (N,)
    log_prob = np.asarray(jaxmdn.log_prob(own, Y))
    close(log_prob, jaxmdn.conditional_log_prob(density, LABEL, Y))
    inner = density.components.components
    parts = stats.t(4.0, np.asarray(inner.loc), np.asarray(inner.scale)).logpdf(Y[:, None, None])
    parts = parts.sum(-1) + special.log_softmax(np.asarray(density.components.logits), axis=-1)
    close(log_prob, special.logsumexp(parts, axis=-1)[ROWS, LABEL])
    assert jaxmdn.sample(jax.random.key(0), density, 7).shape == (7, N, D)


def test_class_marginal_is_the_same_density():
    flat = jaxmdn.flatten_mixture(DENSITY)
    assert flat.num_components == C * K
    assert flat.batch_shape == (N,)
    assert not isinstance(flat.components, Mixture)
    close(jaxmdn.log_prob(flat, Y), special.logsumexp(LOG_JOINT, axis=-1))
    moments = jax.jit(lambda density: (density.mean(), density.variance(), density.covariance()))
    for density in (flat, DENSITY):
        mean, variance, covariance = moments(density)
        close(mean, FLAT.mean())
        close(covariance, FLAT.covariance())
        close(variance, np.diagonal(FLAT.covariance(), axis1=-2, axis2=-1))
    assert jaxmdn.flatten_mixture(flat) is flat


def test_class_marginal_of_parameters_with_fewer_axes():
    """Class logits for every row, one set of mixtures without rows, unnormalised inner logits."""
    inner = first_row(DENSITY.components)
    density = Mixture(logits=DENSITY.logits, components=inner)
    conditional = oracles.of_mixture(inner).log_prob(Y[:, None])
    expected = special.logsumexp(LOG_CLASS + conditional, axis=-1)
    close(jaxmdn.log_prob(jaxmdn.flatten_mixture(density), Y), expected)
    close(jaxmdn.log_prob(density, Y), expected)


def test_samples_carry_their_class():
    count = 20_000
    density = first_row(DENSITY)
    y, label = jaxmdn.sample(jax.random.key(0), density, (count,), return_index=True)
    assert y.shape == (count, D)
    assert label.shape == (count,)
    counts = np.bincount(label, minlength=C)
    assert stats.chisquare(counts, count * np.exp(LOG_CLASS[0])).pvalue > 1e-4
    mean, covariance = PER_CLASS.mean()[0], PER_CLASS.covariance()[0]
    for c in range(C):
        rows = np.asarray(y)[label == c]
        error = np.sqrt(np.diag(covariance[c]) / len(rows))
        np.testing.assert_array_less(np.abs(rows.mean(axis=0) - mean[c]), 4.0 * error)
        spread = np.diag(np.cov(rows.T)) / np.diag(covariance[c])
        # The relative error of a variance is sqrt((kurtosis - 1) / rows); kurtosis is 3 or so.
        np.testing.assert_allclose(spread, 1.0, atol=4.0 * np.sqrt(4.0 / len(rows)))


def value_and_gradient(function, density):
    """Each row's value, and the gradient of their sum, in NumPy."""

    @jax.jit
    def both(density):
        value, pull = jax.vjp(function, density)
        return value, pull(jnp.ones_like(value))[0]

    return jax.tree.map(np.asarray, both(density))


@pytest.mark.parametrize("function", [jaxmdn.joint_log_prob, jaxmdn.conditional_log_prob])
def test_a_class_that_does_not_exist(function):
    label = jnp.asarray([0, -1, C, 1])
    value, gradient = value_and_gradient(lambda density: function(density, label, Y), DENSITY)
    assert np.array_equal(np.isneginf(value), [False, True, True, False])
    for leaf in jax.tree.leaves(gradient):
        assert np.all(np.isfinite(leaf))
        assert np.all(leaf[1:3] == 0)
    assert np.any(gradient.components.components.loc[0] != 0)
    assert np.isneginf(jaxmdn.class_log_prob(DENSITY, label)[1])


def test_a_class_of_probability_zero():
    logits = np.where(np.arange(C) == 1, -np.inf, DENSITY.logits)
    density = Mixture(logits=jnp.asarray(logits), components=DENSITY.components)
    label = jnp.asarray([1, 1, 0, 2])
    joint, gradient = value_and_gradient(
        lambda density: jaxmdn.joint_log_prob(density, label, Y), density
    )
    assert np.array_equal(np.isneginf(joint), [True, True, False, False])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    posterior = np.asarray(jaxmdn.responsibilities(density, Y))
    close(posterior[:, [0, 2]], special.softmax(LOG_JOINT[:, [0, 2]], axis=-1))
    assert np.all(posterior[:, 1] == 0)
    # Given the class, its density is what it was.
    close(jaxmdn.conditional_log_prob(density, label, Y), LOG_CONDITIONAL[ROWS, label])


def test_structure_errors(user_errors):
    flat = jaxmdn.flatten_mixture(DENSITY)
    with pytest.raises(TypeError, match="joint_log_prob: expected a class-conditional density"):
        jaxmdn.joint_log_prob(flat, LABEL, Y)
    with pytest.raises(TypeError, match="label must have an integer dtype, got float64"):
        jaxmdn.conditional_log_prob(DENSITY, LABEL.astype(float), Y)
    with pytest.raises(TypeError, match="class_log_prob: label must have an integer dtype"):
        jaxmdn.class_log_prob(DENSITY, LABEL.astype(float))
    with pytest.raises(ValueError, match=r"density \[4\], label \[3\], y \[4\]"):
        jaxmdn.joint_log_prob(DENSITY, LABEL[:3], Y)
    with pytest.raises(ValueError, match=r"y of shape \[\.\.\., 2\].*got \[4, 1\]"):
        jaxmdn.joint_log_prob(DENSITY, LABEL, Y[:, :1])


def random_mixture(covariance, num_components, **options):
    return oracles.random_mixture(RNG, covariance, num_components, D, (N,), **options)


def check_pool(mixtures, weights, pooled):
    """``log sum_m w_m p_m(y)``, term by term."""
    terms = np.stack([oracles.of_mixture(mixture).log_prob(Y) for mixture in mixtures], axis=-1)
    expected = special.logsumexp(terms, b=weights, axis=-1)
    close(jaxmdn.log_prob(pooled, Y), expected)
    assert pooled.num_components == sum(mixture.num_components for mixture in mixtures)


@pytest.mark.parametrize("covariance", ["diagonal", "full", "low_rank"])
def test_merge_is_the_average_density(covariance):
    """Members differ in K; one of them shares its shape among its components."""
    options = {} if covariance != "low_rank" else {"rank": 1}
    heads = [
        NormalHead(3, D, covariance=covariance, **options),
        NormalHead(1, D, covariance=covariance, **options),
        NormalHead(2, D, covariance=covariance, tied=True, **options),
    ]
    mixtures = [head(oracles.random_raw(RNG, head, (N,))) for head in heads]
    check_pool(mixtures, [1 / 3] * 3, jaxmdn.merge(mixtures))
    weights = jnp.asarray([1.0, 5.0, 2.0])  # normalised by merge
    check_pool(mixtures, weights / 8.0, jaxmdn.merge(mixtures, weights))
    by_row = jnp.asarray(RNG.dirichlet(np.ones(3), size=N))
    check_pool(mixtures, by_row, jaxmdn.merge(mixtures, by_row))


@pytest.mark.parametrize("covariance", ["diagonal", "full", "low_rank"])
def test_pool_is_merge_along_an_axis(covariance):
    """Mixtures side by side; a class-conditional density of one row for each member."""
    rng = np.random.default_rng(2)  # its own: some axis must have all N, whatever ran before
    members = oracles.random_mixture(rng, covariance, 2, D, (N,), tied=True)
    assert members.batch_shape == (N,)
    slices = [jax.tree.map(lambda leaf, i=i: leaf[i], members) for i in range(N)]
    weights = jnp.arange(1.0, N + 1)
    pooled = jaxmdn.mixture.pool(members, weights)
    check_pool(slices, weights / weights.sum(), pooled)
    assert pooled.num_components == 2 * N
    single = jaxmdn.mixture.pool(DENSITY)
    y = Y[:1]
    own = oracles.of_mixture(jaxmdn.flatten_mixture(DENSITY)).log_prob(np.broadcast_to(y, Y.shape))
    close(jaxmdn.log_prob(single, y[0]), np.log(np.exp(own).mean()))


@pytest.mark.parametrize("pooled", [False, True])
def test_classes_are_pooled_class_by_class(pooled):
    """``log sum_m w_m p_m(c) p_m(y | c)``, whatever the members' K."""
    rng, weights = np.random.default_rng(4), np.array([0.2, 0.5, 0.3])
    counts = (2, 2, 2) if pooled else (2, 1, 3)
    heads = [jaxmdn.ClassConditionalHead(C, NormalHead(k, D, covariance="full")) for k in counts]
    raw = [oracles.random_raw(rng, head, (N,)) for head in heads]
    members = [head(part) for head, part in zip(heads, raw, strict=True)]
    if pooled:
        whole = jaxmdn.mixture.pool(heads[0](jnp.stack(raw)), jnp.asarray(weights))
    else:
        whole = jaxmdn.merge(members, jnp.asarray(3 * weights))
    assert whole.components.num_components == sum(counts)
    joint = [
        special.log_softmax(np.asarray(own.logits), axis=-1)
        + oracles.of_mixture(own.components).log_prob(Y[:, None])
        for own in members
    ]
    joint = special.logsumexp(joint, b=weights[:, None, None], axis=0)  # [N, C]
    close(jaxmdn.joint_log_prob(whole, LABEL, Y), joint[ROWS, LABEL])
    close(jaxmdn.responsibilities(whole, Y), special.softmax(joint, axis=-1))
    shares = [special.softmax(np.asarray(own.logits), axis=-1) for own in members]
    close(
        jaxmdn.class_log_prob(whole, LABEL),
        np.log(weights @ np.moveaxis(shares, 0, 1))[ROWS, LABEL],
    )


def test_merge_of_isotropic_and_diagonal():
    mixtures = [random_mixture("isotropic", 2, tied=True), random_mixture("diagonal", 3)]
    check_pool(mixtures, [0.5, 0.5], jaxmdn.merge(mixtures))
    dead = jaxmdn.merge(mixtures, jnp.asarray([1.0, 0.0]))
    close(jaxmdn.log_prob(dead, Y), oracles.of_mixture(mixtures[0]).log_prob(Y))


def test_merge_broadcasts_members_without_rows():
    single = Mixture(
        logits=jnp.asarray([0.3, -1.0]),
        components=Normal(loc=jnp.asarray([[0.0, 1.0], [2.0, 0.5]]), scale=jnp.ones((2, 1))),
    )
    mixtures = [single, random_mixture("diagonal", 3)]
    check_pool(mixtures, [0.5, 0.5], jaxmdn.merge(mixtures))


def test_merge_errors(user_errors):
    diagonal, full = random_mixture("diagonal", 2), random_mixture("full", 2)
    wide = oracles.random_mixture(RNG, "diagonal", 2, 3, (N,))
    two_classes = Mixture(logits=DENSITY.logits[:, :2], components=DENSITY.components[:, :2])
    for kind, message, mixtures, weights in (
        (ValueError, "merge: mixtures is empty", [], None),
        (TypeError, "merge: expected a Mixture, got Normal", [diagonal.components], None),
        (ValueError, r"\['classes of FullNormal', 'FullNormal'\]", [DENSITY, full], None),
        (ValueError, r"the same classes, got \[2, 3\]", [DENSITY, two_classes], None),
        (ValueError, r"same component family, got \['Normal', 'Full", [diagonal, full], None),
        (ValueError, r"same event dimension, got \[2, 3\]", [diagonal, wide], None),
        (ValueError, r"weights of shape \[\.\.\., 1\]", [diagonal], jnp.ones(2)),
        (TypeError, "weights must have a real floating", [diagonal], jnp.ones(1, int)),
    ):  # fmt: skip
        with pytest.raises(kind, match=message):
            jaxmdn.merge(mixtures, weights)


def test_a_list_of_components_is_refused(user_errors):
    parts = [jaxmdn.components.Normal(loc=jnp.zeros(1), scale=jnp.ones(1))] * 2
    with pytest.raises(TypeError, match=r"Mixture: components must be one density .* list of 2"):
        jaxmdn.Mixture(logits=jnp.zeros(2), components=parts)


def test_merge_of_different_dtypes_and_weights_with_their_own_batch():
    """Members without a batch axis, pooled by weights per row: NumPy's average of densities."""
    rng = np.random.default_rng(11)
    members = [
        jaxmdn.Mixture(
            logits=jnp.asarray(rng.normal(size=2), dtype),
            components=jaxmdn.components.Normal(
                loc=jnp.asarray(rng.normal(size=(2, 1)), dtype), scale=jnp.ones((2, 1), dtype)
            ),
        )
        for dtype in (np.float32, np.float64)
    ]
    weights = jnp.asarray(rng.uniform(0.1, 1, size=(3, 2)))
    y = jnp.asarray(rng.normal(size=(3, 1)))
    merged = jaxmdn.merge(members, weights)
    densities = np.stack([np.exp(jaxmdn.log_prob(member, y)) for member in members], axis=-1)
    share = np.asarray(weights / weights.sum(-1, keepdims=True))
    np.testing.assert_allclose(
        jaxmdn.log_prob(merged, y), np.log((share * densities).sum(-1)), rtol=1e-6
    )
    with pytest.raises(ValueError, match=r"weights \[3\]"):
        jaxmdn.merge([jaxmdn.NormalHead(1, 1)(jnp.zeros((4, 3)))] * 2, weights)


def test_labels_with_an_axis_too_many_are_refused(user_errors):
    """They would broadcast to [N, N]."""
    head = jaxmdn.ClassConditionalHead(2, jaxmdn.NormalHead(1, 1))
    raw = jnp.zeros((5, head.num_outputs))
    density, label, y = head(raw), jnp.zeros((5, 1), jnp.int32), jnp.zeros((5, 1))
    message = r"expected label of shape \[5\].*got \[5, 1\]; drop the last axis"
    for call in (
        lambda: jaxmdn.class_log_prob(density, label),
        lambda: jaxmdn.joint_log_prob(density, label, y),
        lambda: jaxmdn.conditional_log_prob(density, label, y),
        lambda: jaxmdn.nll(head, raw, jaxmdn.Labeled(label, y)),
    ):
        with pytest.raises(ValueError, match=message):
            call()
