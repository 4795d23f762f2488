"""``fit`` at its defaults follows a level that depends on x, whatever its size."""

import numpy as np
import pytest
from flax import nnx
from levels import CASES, family_of

import jaxmdn
from jaxmdn.heads import FactorizedHead, family_names
from jaxmdn.train import fit, fit_ensemble

ROWS = 2000
pytestmark = pytest.mark.usefixtures("as_users_run")


def rows(name, scale):
    """Inputs, targets and exact log-densities of twice as many rows as are trained on."""
    rng = np.random.default_rng(7)
    x = rng.uniform(-2, 2, size=2 * ROWS)
    law = CASES[name][1](x, scale)
    y = law.draw(rng)
    return x[:, None], y[:, None], law.log_prob(y)


def test_every_family_is_swept():
    families = {family_of(name, 1.0) for name in CASES}
    swept = {family if isinstance(family, str) else family.name for family in families}
    own = {name for name in family_names() if name in swept or "jaxmdn." in origin(name)}
    assert swept == own


def origin(name):
    return jaxmdn.heads.Family(name).component.__module__


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "scale"), [(name, scale) for name, case in CASES.items() for scale in case[2]]
)
def test_fit_is_near_the_exact_likelihood(name, scale, request):
    if (name, scale) == ("hurdle_of_counts", 1e6):  # the noise is 0.1 %: measured 0.08 to 0.10
        request.applymarker(pytest.mark.xfail(reason="not learnt to 0.05 nats from 1,600 rows"))
    x, y, exact = rows(name, scale)
    head = FactorizedHead(family_of(name, scale), 1)
    model = jaxmdn.nn.MDN(1, head, rngs=nnx.Rngs(0))
    result = fit(model, x[:ROWS], y[:ROWS], progress=False)
    gap = np.mean(exact[ROWS:] - np.asarray(result.log_prob(x[ROWS:], y[ROWS:]), float))
    print(f"\ngap {name} {scale:g} {gap:.4f}")
    assert gap < 0.05


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "scale"), [("poisson", 2e5), ("truncated_normal", 1e6), ("negative_binomial", 5e4)]
)
def test_an_ensemble_is_near_the_exact_likelihood(name, scale):
    x, y, exact = rows(name, scale)
    head = FactorizedHead(family_of(name, scale), 1)
    result = fit_ensemble(x[:ROWS], y[:ROWS], head, effort="fast", progress=False)
    gap = np.mean(exact[ROWS:] - np.asarray(result.log_prob(x[ROWS:], y[ROWS:]), float))
    print(f"\ngap ensemble {name} {scale:g} {gap:.4f}")
    assert gap < 0.05
