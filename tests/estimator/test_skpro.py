"""skpro's own checks, and energies that are exact (``make test-skpro``; skipped without skpro)."""

import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats

import jaxmdn

pytest.importorskip("skpro")
from skpro.metrics import CRPS

from jaxmdn.estimator.probabilistic import (
    MixtureDistribution,
)

pytestmark = pytest.mark.usefixtures("as_users_run", "user_errors")


def equal_mixture(loc, scale):
    loc, scale = (jnp.array(value, jnp.float32)[None, :, None] for value in (loc, scale))
    normal = jaxmdn.components.Normal(loc=loc, scale=scale)
    return MixtureDistribution(jaxmdn.Mixture(logits=jnp.zeros(loc.shape[:2]), components=normal))


@pytest.mark.parametrize(("loc", "scale"), [([0.0], [1.0]), ([-3.0, 3.0], [0.5, 0.5])])
def test_energies_are_exact(loc, scale):
    distribution = equal_mixture(loc, scale)

    def cdf(t):
        return np.mean(stats.norm.cdf(t, loc, scale))

    # E|X - X'| = 2 int F (1 - F), CRPS(y) = int (F - [t >= y])^2.
    own = 2 * integrate.quad(lambda t: cdf(t) * (1 - cdf(t)), -20, 20, points=loc)[0]
    assert distribution.energy().iloc[0, 0] == pytest.approx(own, rel=1e-5)
    y = 1.5
    below = integrate.quad(lambda t: cdf(t) ** 2, -20, y)[0]
    above = integrate.quad(lambda t: (1 - cdf(t)) ** 2, y, 20)[0]
    score = CRPS()(pd.DataFrame([[y]]), distribution)
    assert score == pytest.approx(below + above, rel=1e-5)


CHECKS = """
import sys, warnings
from skpro.utils import check_estimator
from jaxmdn.estimator import probabilistic
warnings.simplefilter("ignore")
found = check_estimator(getattr(probabilistic, sys.argv[1]), verbose=False)
failed = {name: result for name, result in found.items() if result != "PASSED"}
assert not failed, failed
assert len(found) > 50
"""


@pytest.mark.parametrize("kind", ["MixtureDistribution", "MDNProbaRegressor"])
def test_skpro_s_own_checks(kind):
    """In a process without the tests' shape checker, which changes signatures."""
    environment = {k: v for k, v in os.environ.items() if k != "JAXMDN_CHECK_TYPES"}
    command = [sys.executable, "-c", CHECKS, kind]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
