"""Heads for outputs of different kinds: one joint mixture, or independent densities."""

import itertools
import json

import complex_step
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from questions import FAMILIES
from scipy import special, stats

import jaxmdn
from jaxmdn.heads import (
    CategoricalHead,
    FactorizedHead,
    Family,
    IndependentHead,
    NormalHead,
)
from jaxmdn.heads.base import from_config, to_config

RNG = np.random.default_rng(20261122)


def softplus(x):
    return np.logaddexp(0, x)


def mixed_head(K=3):
    """Equal families need not be neighbours: outputs 0 and 2 are one group."""
    return FactorizedHead(("normal", "laplace", "normal", Family("student_t", df=4.0)), K)


def joint_oracle(raw, K):
    """SciPy's weights and per-output distributions from the documented layout of ``mixed_head``."""
    blocks = raw.reshape((*raw.shape[:-1], -1, K))
    weights = special.softmax(blocks[..., 0, :], axis=-1)
    places = iter(np.moveaxis(blocks[..., 1:, :], -2, 0))  # blocks of K, in order

    def take(count):  # a block K x count is laid out component by component
        flat = np.concatenate([next(places) for _ in range(count)], axis=-1)
        return np.moveaxis(flat.reshape(*raw.shape[:-1], K, count), -1, 0)

    loc, scale = take(2), 1e-3 + softplus(take(2))
    laplace_loc, laplace_scale = take(1)[0], 1e-3 + softplus(take(1)[0])
    t_loc, t_scale = take(1)[0], 1e-3 + softplus(take(1)[0])
    return weights, [
        stats.norm(loc[0], scale[0]),
        stats.laplace(laplace_loc, laplace_scale),
        stats.norm(loc[1], scale[1]),
        stats.t(4.0, t_loc, t_scale),
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_joint_log_prob_is_scipy_s(dtype):
    head = mixed_head()
    assert head.num_outputs == 3 * (1 + 2 * 4)
    assert head.event_dim == 4
    raw = RNG.normal(size=(50, head.num_outputs)).astype(dtype)
    y = RNG.normal(size=(50, 4)).astype(dtype)
    value = jaxmdn.log_prob(head(jnp.asarray(raw)), jnp.asarray(y))
    weights, parts = joint_oracle(raw.astype(np.float64), 3)
    terms = sum(part.logpdf(y[:, d, None]) for d, part in enumerate(parts))
    expected = special.logsumexp(terms, b=weights, axis=-1)
    tolerance = {np.float32: 2e-5, np.float64: 1e-12}[dtype]  # sums of some ten terms of O(10)
    np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance)
    assert value.dtype == dtype
    np.testing.assert_allclose(jaxmdn.nll(head, raw, y), -expected.mean(), rtol=tolerance)


def test_per_dimension_functions_are_scipy_s():
    head = mixed_head()
    raw, y = RNG.normal(size=(20, head.num_outputs)), RNG.normal(size=(20, 4))
    mixture = head(jnp.asarray(raw))
    weights, parts = joint_oracle(raw, 3)

    def average(method, *arguments):
        return np.stack(
            [
                np.sum(weights * getattr(part, method)(*(a[:, d, None] for a in arguments)), -1)
                for d, part in enumerate(parts)
            ],
            axis=-1,
        )

    np.testing.assert_allclose(jaxmdn.cdf(mixture, y), average("cdf", y), rtol=1e-10)
    np.testing.assert_allclose(jaxmdn.survival(mixture, y), average("sf", y), rtol=1e-10)
    np.testing.assert_allclose(jaxmdn.mean(mixture), average("mean"), rtol=1e-10)
    second = average("var") + np.stack(
        [np.sum(weights * part.mean() ** 2, -1) for part in parts], -1
    )
    variance = second - average("mean") ** 2
    np.testing.assert_allclose(jaxmdn.variance(mixture), variance, rtol=1e-9)
    p = RNG.uniform(0.01, 0.99, size=(20, 4))
    points = jaxmdn.quantile(mixture, p)
    np.testing.assert_allclose(average("cdf", np.asarray(points)), p, rtol=1e-9)


def test_covariance_of_a_joint_mixture_comes_from_the_shared_component():
    head = mixed_head()
    raw = RNG.normal(size=head.num_outputs)
    weights, parts = joint_oracle(raw, 3)
    means = np.stack([np.broadcast_to(part.mean(), 3) for part in parts], -1)  # [K, D]
    variances = np.stack([np.broadcast_to(part.var(), 3) for part in parts], -1)
    center = weights @ means
    expected = np.diag(weights @ variances)
    expected = expected + np.einsum("k,ki,kj->ij", weights, means - center, means - center)
    found = jaxmdn.covariance(head(jnp.asarray(raw)))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_gradients_of_the_joint_density():
    head = mixed_head(2)
    raw, y = RNG.normal(size=head.num_outputs), RNG.normal(size=4)

    def exact(raw, y):
        logits, places = raw[:2], iter(raw[2:].reshape(-1, 2))

        def take():
            return next(places)

        # Component by component: the two normals' locations, then their scales, and so on.
        loc, scale = np.stack([take(), take()]), np.log1p(np.exp(np.stack([take(), take()]))) + 1e-3
        z = (y[[0, 2]] - loc) / scale
        joint = logits - np.log(np.sum(np.exp(logits)))
        joint = joint + np.sum(-0.5 * z * z - np.log(scale) - 0.5 * np.log(2 * np.pi), axis=-1)
        loc, scale = take(), np.log1p(np.exp(take())) + 1e-3
        z = (y[1] - loc) / scale
        joint = joint - np.where(z.real < 0, -z, z) - np.log(2 * scale)
        loc, scale = take(), np.log1p(np.exp(take())) + 1e-3
        z = (y[3] - loc) / scale  # Student's t of four degrees of freedom: 3/8 in front
        joint = joint - 2.5 * np.log(1 + z * z / 4) - np.log(scale) + np.log(3 / 8)
        return np.log(np.sum(np.exp(joint)))

    complex_step.check(
        lambda raw, y: jaxmdn.log_prob(head(raw), y), exact, jnp.asarray(raw), jnp.asarray(y)
    )


def test_marginals_and_conditionals_of_every_subset():
    head = mixed_head()
    raw, y = RNG.normal(size=(7, head.num_outputs)), RNG.normal(size=(7, 4))
    mixture = head(jnp.asarray(raw))
    weights, parts = joint_oracle(raw, 3)

    def log_joint(dims):
        return sum(parts[d].logpdf(y[:, d, None]) for d in dims)

    for size in (1, 2, 3):
        for dims in itertools.permutations(range(4), size):
            marginal = jaxmdn.marginal(mixture, dims)
            expected = special.logsumexp(log_joint(dims), b=weights, axis=-1)
            value = jaxmdn.log_prob(marginal, y[:, dims])
            np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-10)
        rest = [d for d in range(4) if d not in dims]
        conditional = jaxmdn.condition(mixture, dims, jnp.asarray(y[:, dims]))
        value = jaxmdn.log_prob(conditional, y[:, rest])
        total = special.logsumexp(log_joint(range(4)), b=weights, axis=-1)
        np.testing.assert_allclose(value, total - expected, rtol=1e-9, atol=1e-9)


def test_samples_have_the_joint_distribution():
    head = mixed_head()
    # Not wider: a gamma of concentration 0.05 has a kurtosis of 120.
    raw = np.random.default_rng(1).normal(size=head.num_outputs)  # whatever ran before
    mixture = head(jnp.asarray(0.5 * raw))
    draws = np.asarray(jaxmdn.sample(jax.random.key(4), mixture, 20_000))
    assert draws.shape == (20_000, 4)
    for d in range(4):
        pit = np.asarray(jaxmdn.cdf(mixture, jnp.asarray(draws)))[:, d]
        assert stats.kstest(pit, "uniform").pvalue > 1e-3
    light = [0, 1, 2]  # the fourth moments of t with four degrees of freedom are infinite
    found = np.cov(draws[:, light].T)
    expected = np.asarray(jaxmdn.covariance(mixture))[np.ix_(light, light)]
    spread = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert np.all(np.abs(found - expected) < 0.06 * spread)


def test_inverse_config_and_equality():
    for head in (
        mixed_head(),
        FactorizedHead("laplace", 2, scale_link="exp", min_weight=0.1, min_scale=0.0),
        IndependentHead((NormalHead(2, 2, covariance="full"), CategoricalHead(3), mixed_head(1))),
    ):
        again = from_config(json.loads(json.dumps(to_config(head))))
        assert again == head
        assert hash(again) == hash(head)
        raw = jnp.asarray(RNG.normal(size=(5, head.num_outputs)))
        density = head(raw)
        rebuilt = head(head.inverse(density))
        for a, b in zip(jax.tree.leaves(rebuilt), jax.tree.leaves(density), strict=True):
            # Logits up to a constant.
            a, b = (leaf - leaf[..., :1] if leaf.shape == b.shape else leaf for leaf in (a, b))
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


def test_one_family_needs_no_wrapper():
    head = FactorizedHead(("normal", "normal"), 4)
    raw, y = (
        jnp.asarray(RNG.normal(size=(6, head.num_outputs))),
        jnp.asarray(RNG.normal(size=(6, 2))),
    )
    mixture = head(raw)
    assert type(mixture.components) is jaxmdn.components.Normal
    np.testing.assert_allclose(
        jaxmdn.log_prob(mixture, y), jaxmdn.log_prob(NormalHead(4, 2)(raw), y), rtol=1e-12
    )


def test_independent_outputs_add_up_and_keep_to_themselves():
    heads = (NormalHead(2, 2, covariance="full"), CategoricalHead(3), FactorizedHead("laplace", 4))
    head = IndependentHead(heads)
    assert head.event_dim == 4
    assert head.real_valued
    assert head.closure == ("affine", "affine", "none", "affine")
    raw = jnp.asarray(RNG.normal(size=(9, head.num_outputs)))
    y = np.column_stack([RNG.normal(size=(9, 2)), RNG.integers(3, size=9), RNG.normal(size=9)])
    density = head(raw)
    ends = np.cumsum([inner.num_outputs for inner in heads])
    blocks = np.split(np.asarray(raw), ends[:-1], axis=-1)
    columns = (y[:, :2], y[:, 2:3].astype(int), y[:, 3:])
    expected = sum(
        jaxmdn.log_prob(inner(jnp.asarray(block)), jnp.asarray(column))
        for inner, block, column in zip(heads, blocks, columns, strict=True)
    )
    np.testing.assert_allclose(jaxmdn.log_prob(density, jnp.asarray(y)), expected, rtol=1e-12)
    # A wrong class has no density; the gradient stays clean.
    wrong = jnp.asarray(y).at[:, 2].set(1.5)
    assert np.all(np.isneginf(jaxmdn.log_prob(density, wrong)))

    draws = np.asarray(jaxmdn.sample(jax.random.key(1), density, 4000))
    assert draws.shape == (4000, 9, 4)
    assert set(np.unique(draws[..., 2])) == {0.0, 1.0, 2.0}
    share = (draws[:, 0, 2, None] == np.arange(3)).mean(0)
    np.testing.assert_allclose(share, density.parts[1].probabilities()[0], atol=0.03)
    found = np.corrcoef(draws[:, 0, 0], draws[:, 0, 3])[0, 1]
    assert abs(found) < 5 / np.sqrt(4000)  # independent of each other
    kept = jaxmdn.marginal(density, (3, 0))
    value = jaxmdn.log_prob(kept, jnp.asarray(y[:, [3, 0]]))
    first = jaxmdn.marginal(density.parts[0], (0,))
    expected = jaxmdn.log_prob(first, y[:, :1]) + jaxmdn.log_prob(density.parts[2], y[:, 3:])
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    p = jnp.asarray(RNG.uniform(size=(9, 2)))
    np.testing.assert_allclose(jaxmdn.cdf(kept, jaxmdn.quantile(kept, p)), p, rtol=1e-9)


def test_initial_bias_has_the_data_s_moments():
    count = 4000
    y = np.column_stack(
        [
            np.where(RNG.random(count) < 0.5, 0.0, 8.0) + RNG.normal(size=count),
            RNG.laplace(5.0, 2.0, size=count),
            100.0 + 30.0 * RNG.normal(size=count),
            RNG.standard_t(6, size=count),
        ]
    )
    head = mixed_head(4)
    mixture = head(jaxmdn.heads.initializers.from_targets(jax.random.key(0), head, jnp.asarray(y)))
    np.testing.assert_allclose(jaxmdn.mean(mixture), y.mean(0), rtol=1e-6, atol=1e-3)
    np.testing.assert_allclose(jaxmdn.variance(mixture), y.var(0), rtol=0.02)
    both = IndependentHead((head, CategoricalHead(3)))
    labels = RNG.choice(3, p=[0.5, 0.3, 0.2], size=(count, 1))
    bias = jaxmdn.heads.initializers.from_targets(
        jax.random.key(0), both, jnp.asarray(np.hstack([y, labels]))
    )
    probabilities = both(bias).parts[1].probabilities()
    np.testing.assert_allclose(probabilities, np.bincount(labels[:, 0]) / count, atol=1e-3)


EVERY = (
    *FAMILIES,
    Family("zero_inflated", base="negative_binomial"),
    Family("hurdle", base="lognormal"),
    Family("hurdle", base="poisson"),
    Family("beta", lower=-1.0, upper=1.0),
    Family("student_t", df=1.5),
)
CLOSURE = {"affine": 5 + 1, "scale": 3 + 1 + 1, "none": 3 + 1 + 5 + 1 + 1 + 1}


def test_every_family_stands_beside_every_other():
    head = FactorizedHead(EVERY, 3)
    assert {kind: head.closure.count(kind) for kind in CLOSURE} == CLOSURE
    assert from_config(json.loads(json.dumps(to_config(head)))) == head
    raw = jnp.asarray(0.3 * RNG.normal(size=head.num_outputs))
    mixture = head(raw)
    y = jaxmdn.sample(jax.random.key(0), mixture, 500)
    assert y.shape == (500, len(EVERY))
    assert np.all(head.in_support(y))
    value, gradient = jax.jit(jax.value_and_grad(lambda raw: jaxmdn.nll(head, raw, y)))(raw)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))
    # The joint is the mixture of the products of the families, each evaluated by itself.
    parts = []
    for d, family in enumerate(EVERY):
        single = jaxmdn.marginal(mixture, (d,))
        parts.append(jaxmdn.component_log_prob(single, y[:, d : d + 1]))
        assert (
            type(single.components).__name__
            == Family(getattr(family, "name", family)).component.__name__
        )
    terms = np.sum(parts, axis=0)
    expected = special.logsumexp(terms, b=special.softmax(mixture.logits), axis=-1)
    np.testing.assert_allclose(jaxmdn.log_prob(mixture, y), expected, rtol=1e-9)
    # Whatever is outside its support has no density, and says which.
    wrong = y.at[0, FAMILIES.index("gamma")].set(-1.0)
    wrong = wrong.at[1, FAMILIES.index("poisson")].set(0.5)
    wrong = wrong.at[2, FAMILIES.index("beta")].set(1.5)
    assert np.all(np.isneginf(jaxmdn.log_prob(mixture, wrong[:3])))
    assert np.argwhere(~np.asarray(head.in_support(wrong))).tolist() == [
        [0, FAMILIES.index("gamma")],
        [1, FAMILIES.index("poisson")],
        [2, FAMILIES.index("beta")],
    ]
    start = head(jaxmdn.heads.initializers.from_targets(jax.random.key(0), head, y))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(start))
    # Where two moments can be had they are the data's; bins, angles and zeros come near.
    near = {"bernoulli", "discretized_logistic", "hurdle", "negative_binomial", "poisson"}
    near |= {"truncated_normal", "von_mises", "zero_inflated"}
    exact = [d for d, family in enumerate(FAMILIES) if family not in near]
    np.testing.assert_allclose(
        np.asarray(jaxmdn.mean(start))[exact], np.asarray(y.mean(0))[exact], rtol=1e-4, atol=1e-3
    )


@pytest.mark.usefixtures("as_users_run")
def test_fit_finds_each_output_s_density():
    """Normal, Laplace of x-dependent scale, counts of 1e4, 1e-6 between bounds, a class."""
    from flax import nnx

    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, size=(3000, 1)).astype(np.float32)
    scale = np.exp(x[:, 0])
    odds = special.expit(3 * x[:, 0])
    label = (rng.random(3000) < odds).astype(np.float32)
    count, level = stats.poisson(1e4 * scale), 1.2e-6 * scale
    short = stats.truncnorm(-level / 2e-7, (4e-6 - level) / 2e-7, level, 2e-7)
    y = [2 * x[:, 0] + rng.normal(size=3000), rng.laplace(0, scale)]
    y = [*y, count.rvs(random_state=rng), short.rvs(random_state=rng), label]
    y = np.column_stack(y).astype(np.float32)
    bounded = Family("truncated_normal", lower=0.0, upper=4e-6)
    head = IndependentHead(
        (FactorizedHead(("normal", "laplace", "poisson", bounded), 1), CategoricalHead(2))
    )
    model = jaxmdn.nn.MDN(1, head, hidden_features=(32,), rngs=nnx.Rngs(0))
    result = jaxmdn.train.fit(
        model, x[:2400], y[:2400], num_epochs=150, patience=10, progress=False
    )
    assert model.head.heads[0].units == (1.0, 1.0, 1.0, 2.0**-20)
    exact = (
        stats.norm.logpdf(y[:, 0], 2 * x[:, 0], 1)
        + stats.laplace.logpdf(y[:, 1], 0, scale)
        + count.logpmf(y[:, 2])
        + short.logpdf(y[:, 3])
        + stats.bernoulli.logpmf(label, odds)
    )[2400:]
    found = np.asarray(result.log_prob(x[2400:], y[2400:]))
    assert np.mean(exact - found) == pytest.approx(0, abs=0.05)
    predicted = result.predict(x[2400:])
    np.testing.assert_allclose(jaxmdn.log_prob(predicted, jnp.asarray(y[2400:])), found, atol=1e-4)
    bad = y[:100].copy()
    bad[7, 4] = 2.0
    with pytest.raises(ValueError, match=r"the first of them row 7: column 4 is 2\.0"):
        jaxmdn.train.fit(model, x[:100], bad, validation=None, num_epochs=1, progress=False)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: FactorizedHead((), 3), ValueError, "families is empty"),
        (
            lambda: FactorizedHead(("norm",), 3),
            ValueError,
            "families must be one of 'asymmetric_laplace'",
        ),
        (lambda: FactorizedHead((3,), 3), TypeError, "families must be names, declared classes or"),
        (lambda: FactorizedHead("normal", 0), ValueError, "num_components must be at least 1"),
        (lambda: FactorizedHead("normal", 2, scale_link="identity"), ValueError, "scale must be"),
        (lambda: Family("normal", df=3.0), ValueError, "'normal' takes no constants, got 'df'"),
        (lambda: Family("student_t", nu=3.0), ValueError, "must be one of 'df'; got 'nu'"),
        (lambda: Family("cauchy"), ValueError, "name must be one of"),
        (lambda: IndependentHead(()), ValueError, "heads is empty"),
        (lambda: IndependentHead(("normal",)), TypeError, "heads must be jaxmdn heads, got str"),
    ],
)
@pytest.mark.usefixtures("user_errors")
def test_impossible_configurations(build, error, message):
    with pytest.raises(error, match=message):
        build()
