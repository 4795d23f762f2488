"""What a score costs beside the log-density, in float32, in turns on whatever machine this is."""

import os

import jax
import pytest

import jaxmdn
from jaxmdn.cli import timing
from jaxmdn.cli.bench import draw
from jaxmdn.heads import FactorizedHead, Family

FAMILIES = {
    "gamma": "gamma", "beta": "beta", "poisson": "poisson", "weibull": "weibull",
    "negative_binomial": "negative_binomial", "student_t": Family("student_t", df=4.0),
    "hurdle": Family("hurdle", base="gamma"), "lognormal": "lognormal",
}  # fmt: skip
MOST = 100  # log-densities


@pytest.mark.nightly
@pytest.mark.skipif(not os.environ.get("JAXMDN_TEST_OPTIMIZED"), reason="compiled as nobody does")
@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize("name", FAMILIES)
def test_crps_costs_at_most_a_hundred_log_densities(name):
    head = FactorizedHead(FAMILIES[name], 10)
    raw, y = draw(head, 2000, "float32")
    mixture = jax.jit(head)(raw)
    runners = [timing.jax_runner(f, mixture, y) for f in (jaxmdn.crps, jaxmdn.log_prob)]
    for runner in runners:
        runner.call()
    score, density = (found["median"] for found in timing.alternate(runners, 15, budget=3.0))
    print(f"\n{name}: {score / density:.0f} log-densities")
    assert score < MOST * density
