"""Scores and probabilities of random mixtures of every family, from deep inside to far outside.

Probabilities lie in [0, 1]; scores, and their gradients in every parameter and in the target, are
finite wherever parameters and targets are.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BY_NAME, CASES
from scipy import special, stats

import jaxmdn
from jaxmdn.components import Beta, Gamma, LogitNormal, LogNormal, Normal, StudentT, Weibull
from jaxmdn.scoring import interval_score, pinball_score, quantile_crps

ROWS, K = 500, 3
NIGHTLY = pytest.mark.nightly
#: Functions whose values and gradients are finite.
SCORES = {
    "crps": jaxmdn.crps,
    "quantile_crps": partial(quantile_crps, num_levels=8),
    "pinball_score": lambda density, y: pinball_score(density, y, 0.9),
    "interval_score": interval_score,
}


@partial(jax.jit, static_argnums=0)
def answers(names, mixture, y, key):
    probabilities = {
        "cdf": jaxmdn.cdf(mixture, y),
        "survival": jaxmdn.survival(mixture, y),
        "pit": jaxmdn.pit(mixture, y, key=key),
    }
    if not any(mixture.jumps) and mixture.support[0].kind == "real":
        probabilities["hdr_level"] = jaxmdn.hdr_level(mixture, y).value
    scores = {}
    for name in names:
        value, pull = jax.vjp(SCORES[name], mixture, y)
        scores[name] = value, pull(jnp.ones_like(value))
    return probabilities, scores


def targets(case, mixture, rng, dtype):
    """A third of them draws, the others at any distance on either side."""
    y = np.asarray(jaxmdn.sample(jax.random.key(1), mixture), np.float64)
    size = np.exp(rng.uniform(-20, 40, y.shape)) * rng.choice([-1, 1], y.shape)
    y = np.where(rng.random(y.shape) < 1 / 3, y, size)
    return jnp.asarray(np.round(y) if case.discrete else y, dtype)


def sweep(case, dtype, names, batches):
    for seed in range(batches):
        rng = np.random.default_rng(seed)
        parameters = case.parameters(seed, (ROWS, K, 1), dtype)
        mixture = jaxmdn.Mixture(
            logits=jnp.asarray(4 * rng.normal(size=(ROWS, K)), dtype),
            components=case.make({name: jnp.asarray(v) for name, v in parameters.items()}),
        )
        y = targets(case, mixture, rng, dtype)
        probabilities, scores = answers(names, mixture, y, jax.random.key(seed))
        for name, value in probabilities.items():
            wrong = np.flatnonzero(~((value >= 0) & (value <= 1)))
            assert wrong.size == 0, (name, seed, wrong, np.asarray(y)[wrong], value[wrong])
        for name, (value, gradient) in scores.items():
            for leaf in (value, *jax.tree.leaves(gradient)):
                wrong = np.unique(np.nonzero(~np.isfinite(np.asarray(leaf)))[0])
                assert wrong.size == 0, (name, seed, wrong, np.asarray(y)[wrong])


@pytest.mark.parametrize("name", ["log-normal", "beta", "hurdle-gamma"])
def test_crps_is_finite_and_probabilities_are_such(name):
    sweep(BY_NAME[name], np.float32, ("crps",), 2)


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ten_thousand_mixtures(case, dtype):
    sweep(case, dtype, tuple(SCORES), 20)


def test_quantiles_at_levels_that_a_weight_leaves():
    """Where ``1 - p`` is all of a component's weight but for rounding, it bounds nothing."""
    loc, logits = np.array([-1.0, 0.0, 2.0]), np.array([0.3, 2.0, -1.0])
    weights = special.softmax(logits)
    steps = np.arange(-400, 401) * np.finfo(np.float32).eps
    p = np.float32(1 - weights[:, None] * (1 + steps)).ravel()
    mixture = jaxmdn.Mixture(
        logits=jnp.asarray(logits, jnp.float32),
        components=Normal(
            loc=jnp.asarray(loc, jnp.float32)[:, None], scale=jnp.ones((3, 1), jnp.float32)
        ),
    )
    found = np.float64(jaxmdn.quantile(mixture, p)[:, 0])
    reached = np.sum(weights * stats.norm.cdf(found[:, None], loc), axis=-1)
    np.testing.assert_allclose(reached, p, rtol=1e-5)


#: Members whose draws round to the ends of the support, most of them or a few in a thousand.
EXTREME = [
    (Beta, {"concentration1": 0.02, "concentration0": 0.02}, {}),
    (Beta, {"concentration1": 0.05, "concentration0": 2.0}, {"lower": -2.0, "upper": 3.0}),
    (Gamma, {"concentration": 0.02, "rate": 5.0}, {}),
    (Weibull, {"concentration": 0.02, "scale": 1.0}, {}),
    (LogNormal, {"loc": 0.0, "scale": 60.0}, {}),
    (LogitNormal, {"loc": 0.0, "scale": 60.0}, {"lower": -2.0, "upper": 3.0}),
    (StudentT, {"loc": 0.0, "scale": 1.0, "df": 0.05}, {}),
]


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("float32", 10**5), *(pytest.param(d, 10**5, marks=NIGHTLY) for d in ("float64", "float16"))],
)
def test_draws_do_not_round_to_the_ends(dtype, size, float16):
    """Where the density is infinite or zero; their distribution stays what it is."""

    @jax.jit
    def draws(densities):
        key = jax.random.key(0)
        values = [density.sample(key, (size,)) for density in densities]
        pairs = zip(densities, values, strict=True)
        return values, [(d.log_prob(y), d.in_support(y)) for d, y in pairs]

    ones = np.ones((1, 1), dtype)
    densities = [
        kind(**{name: jnp.asarray(value * ones) for name, value in parameters.items()}, **bounds)
        for kind, parameters, bounds in EXTREME
    ]
    at_ends = 0
    for density, y, (log_prob, inside) in zip(densities, *draws(densities), strict=True):
        assert y.dtype == dtype
        assert np.isfinite(log_prob).all(), density
        assert inside.all(), density
        at_ends += np.isin(y, density.domain.interior(dtype)).sum()
    assert at_ends > 1000  # what rounds is there


@NIGHTLY
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_draws_have_finite_densities(case, dtype):
    parameters = case.parameters(0, (1000, 1, 1), dtype)
    density = case.make({name: jnp.asarray(v) for name, v in parameters.items()})
    both = jax.jit(lambda d: (lambda y: (y, d.log_prob(y)))(d.sample(jax.random.key(0), (100,))))
    y, log_prob = both(density)
    assert np.isfinite(log_prob).all()
    assert np.isfinite(y).all()
