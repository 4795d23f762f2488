"""Members with given moments, of counts, levels and families with extra zeros."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxmdn.components import (
    Bernoulli,
    DiscretizedLogistic,
    Gamma,
    Hurdle,
    NegativeBinomial,
    Poisson,
    ZeroInflated,
)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_moments_are_recovered(dtype):
    rng = np.random.default_rng(12)
    mean = np.exp(rng.uniform(-3, 8, 40))
    variance = mean + mean**2 * np.exp(rng.uniform(-1, 3, 40))
    mean, variance = (jnp.asarray(v, dtype)[:, None] for v in (mean, variance))
    rtol = 40 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(Poisson.from_moments(mean, variance).rate, mean, rtol=rtol)
    family = NegativeBinomial.from_moments(mean, variance)
    m, r = np.asarray(family.rate, float), np.asarray(family.concentration, float)
    np.testing.assert_allclose(m, mean, rtol=rtol)
    # The variance less the mean is what is left for the concentration.
    np.testing.assert_allclose(m + m * m / r, variance, rtol=rtol)
    for kind in (ZeroInflated, Hurdle):
        for base in (Gamma,) if kind is Hurdle else (NegativeBinomial,):
            found = kind.from_moments(mean, variance, base=base)
            assert found.dtype == dtype
            z = special.expit(np.asarray(found.logit, float))
            inner = jax.tree.map(lambda leaf: np.asarray(leaf, float), found.base)
            a, b = jax.tree.leaves(inner)
            own = (a / b, a / b**2) if base is Gamma else (a, a + a * a / b)
            np.testing.assert_allclose((1 - z) * own[0], mean, rtol=rtol)
            total = (1 - z) * (own[1] + z * own[0] ** 2)
            np.testing.assert_allclose(total, variance, rtol=rtol)
    share = jnp.asarray(rng.uniform(1e-4, 0.9999, (9, 1)), dtype)
    logit = Bernoulli.from_moments(share, share).logit
    np.testing.assert_allclose(special.expit(np.asarray(logit, float)), share, rtol=rtol)
    # Levels a tenth of the scale apart, the ends far away.
    mean, variance = jnp.full((1, 1), 100.3, dtype), jnp.full((1, 1), 300.0, dtype)
    found = DiscretizedLogistic.from_moments(mean, variance)
    (table, _), level = _levels_of(found), np.arange(256)
    np.testing.assert_allclose(np.sum(table * level), 100.3, rtol=1e-5)
    np.testing.assert_allclose(np.sum(table * (level - 100.3) ** 2), 300.0, rtol=1e-3)


def _levels_of(found):
    edges = np.arange(255) + 0.5
    cdf = special.expit((edges - float(found.loc[0, 0])) / float(found.scale[0, 0]))
    return np.diff(cdf, prepend=0, append=1), edges
