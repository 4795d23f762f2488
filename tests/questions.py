"""Every public function of a density, under one signature, for sweeps over what surrounds it.

``QUESTIONS[name](head, raw, y)``: raw outputs ``[N, P]`` and targets to a tree of arrays. A head to
which a question does not apply refuses it with a ``TypeError`` or a ``ValueError``.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxmdn
from jaxmdn import calibration, scoring

K = 3
#: Names of jaxmdn's families. Those of tests are registered too, once they have run here.
FAMILIES = tuple(
    name
    for name in jaxmdn.heads.family_names()
    if jaxmdn.heads.Family(name).component.__module__.startswith("jaxmdn.")
)
WITH_BASE = ("hurdle", "zero_inflated")
REFUSALS = (TypeError, ValueError, NotImplementedError, AttributeError)


def heads():
    """A head of every kind, by name."""
    made = {name: jaxmdn.FactorizedHead(name, K) for name in FAMILIES if name not in WITH_BASE}
    for covariance in ("isotropic", "diagonal", "full"):
        made[covariance] = jaxmdn.NormalHead(K, 2, covariance=covariance)
    made |= {
        "low-rank": jaxmdn.NormalHead(K, 3, covariance="low_rank", rank=1),
        "tied": jaxmdn.NormalHead(K, 2, covariance="full", tied=True),
        "scalar": jaxmdn.NormalHead(K, 1),
        "hurdle": jaxmdn.FactorizedHead(jaxmdn.Family("hurdle", base="gamma"), K),
        "zero-inflated": jaxmdn.FactorizedHead(jaxmdn.Family("zero_inflated", base="poisson"), K),
        "mixed": jaxmdn.FactorizedHead(("gamma", "normal"), K),
        "independent": jaxmdn.IndependentHead((jaxmdn.NormalHead(K, 1), jaxmdn.NormalHead(K, 1))),
        "classes": jaxmdn.ClassConditionalHead(2, jaxmdn.NormalHead(K, 2, covariance="full")),
        "categorical": jaxmdn.CategoricalHead(4),
    }
    return made


def rows(head, count=8):
    """Raw outputs and targets, drawn from what they say."""
    raw = np.random.default_rng(1).normal(size=(count, head.num_outputs))
    y = jaxmdn.sample(jax.random.key(0), head(jnp.asarray(raw)))
    return raw, jax.tree.map(np.asarray, y)


def _key():
    return jax.random.key(0)


def _keyed(function):
    """Calibration asks for a key where a distribution function jumps."""

    def ask(head, raw, y):
        density = head(raw)
        return function(density, y, key=_key() if any(density.jumps) else None)

    return ask


def _gradient(function):
    def ask(head, raw, y):
        return jax.value_and_grad(lambda raw: jnp.mean(function(head, raw, y)))(raw)

    return ask


def _linear(head, raw, y, **options):
    outputs = jnp.eye(head.num_outputs, dtype=raw.dtype)
    return jaxmdn.linear_nll(head, raw, outputs, jnp.zeros_like(outputs[0]), y, **options)


def _of_density(function, *arguments, **options):
    return lambda head, raw, y: function(head(raw), *arguments, **options)


def _of_target(function, *arguments, **options):
    return lambda head, raw, y: function(head(raw), y, *arguments, **options)


def _of_draws(function, *arguments, **options):
    return lambda head, raw, y: function(_key(), head(raw), *arguments, **options)


def _of_two(function):
    return lambda head, raw, y: function(head(raw), head(raw[..., ::-1]))


QUESTIONS = {
    "nll": _gradient(jaxmdn.nll),
    "linear_nll": _gradient(_linear),
    "nll by blocks": _gradient(functools.partial(jaxmdn.nll, implementation="xla_chunked")),
    "nll of rows": functools.partial(jaxmdn.nll, reduction="none"),
    "quantile": _of_density(jaxmdn.quantile, 0.3),
    "quantile's slope": _gradient(lambda head, raw, y: jaxmdn.quantile(head(raw), 0.3)),
    "hdr_intervals": _of_density(jaxmdn.hdr_intervals, 0.9),
    "hdr_threshold": lambda head, raw, y: jaxmdn.hdr_threshold(head(raw), 0.9, key=_key()),
    "hdr_level": lambda head, raw, y: jaxmdn.hdr_level(head(raw), y, key=_key()),
    "sample": _of_draws(jaxmdn.sample, (5,)),
    "moving samples": _gradient(
        lambda head, raw, y: jaxmdn.sample(_key(), head(raw), (5,), reparameterize=True)
    ),
    "marginal": _of_density(jaxmdn.marginal, (0,)),
    "condition": lambda head, raw, y: jaxmdn.condition(head(raw), (0,), y[:, :1]),
    "affine": _of_density(jaxmdn.affine, 1.0, 2.0),
    "temper": _of_density(jaxmdn.temper, weight_temperature=2.0),
    "product": _of_two(jaxmdn.product),
    "merge": _of_two(lambda a, b: jaxmdn.merge([a, b])),
    "kl_upper_bound": _of_two(jaxmdn.kl_upper_bound),
    "kl_divergence": _of_two(lambda a, b: jaxmdn.kl_divergence(_key(), a, b)),
    "pit": _keyed(jaxmdn.pit),
    "rosenblatt": _keyed(jaxmdn.rosenblatt),
    "energy_score": lambda head, raw, y: jaxmdn.energy_score(_key(), head(raw), y),
    "variogram_score": lambda head, raw, y: scoring.variogram_score(_key(), head(raw), y),
    "interval_score": _of_target(scoring.interval_score, 0.9),
    "pinball_score": _of_target(scoring.pinball_score, 0.9),
    "coverage": _of_target(calibration.coverage),
    "reliability_table": _of_target(calibration.reliability_table, [0.1, 0.5]),
    "conformal_interval": _of_target(calibration.conformal_interval, 0.5),
    "central_interval": _of_density(calibration.central_interval, 0.9),
    "joint_log_prob": _of_target(jaxmdn.joint_log_prob),
    "in_support": lambda head, raw, y: head.in_support(y),
}
for _function in (
    jaxmdn.log_prob,
    jaxmdn.cdf,
    jaxmdn.log_cdf,
    jaxmdn.survival,
    jaxmdn.log_survival,
    jaxmdn.component_log_prob,
    jaxmdn.responsibilities,
    jaxmdn.crps,
    jaxmdn.log_score,
    scoring.quantile_crps,
):
    QUESTIONS[_function.__name__] = _of_target(_function)
for _function in (
    jaxmdn.mean,
    jaxmdn.variance,
    jaxmdn.covariance,
    jaxmdn.modes,
    jaxmdn.entropy_bounds,
    jaxmdn.effective_num_components,
    jaxmdn.is_dead,
    jaxmdn.flatten_mixture,
):
    QUESTIONS[_function.__name__] = _of_density(_function)


def answered(head, raw, y):
    """The questions that apply to a head, with the shapes of their answers."""
    found = {}
    for name, ask in QUESTIONS.items():
        try:
            found[name] = jax.eval_shape(functools.partial(ask, head), raw, y)
        except REFUSALS:
            continue
    return found
