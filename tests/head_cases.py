"""The heads that the contract runs over: a new one is one line here."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import oracles
import pytest

import jaxmdn
from jaxmdn import CategoricalHead, ClassConditionalHead, Head, NormalHead


@dataclasses.dataclass(frozen=True)
class Case:
    """A head for every ``(K, D)``, and the oracle that reads its raw outputs."""

    name: str
    make: Callable[[int, int], Head]
    oracle: Callable[[Head, Any], Any] = oracles.parameters

    def rng(self):
        return np.random.default_rng(zlib.crc32(self.name.encode()))


def _normal(covariance, **options):
    return lambda K, D: oracles.head_of(covariance, K, D, **options)


CONTINUOUS = [
    Case("isotropic", _normal("isotropic")),
    Case("diagonal", _normal("diagonal")),
    Case("full", _normal("full")),
    Case("low-rank", _normal("low_rank")),
    Case("isotropic-tied", _normal("isotropic", tied=True)),
    Case("diagonal-tied", _normal("diagonal", tied=True)),
    Case("full-tied", _normal("full", tied=True)),
    Case("low-rank-tied", _normal("low_rank", tied=True)),
    Case("bounded-floored", _normal("diagonal", scale_link="damped_exp", min_weight=0.01)),
    Case("per-class", lambda K, D: ClassConditionalHead(2, NormalHead(K, D, covariance="full"))),
]
DISCRETE = [
    Case("categorical", lambda K, D: CategoricalHead(K + 1)),
    Case("categorical-floored", lambda K, D: CategoricalHead(K + 1, min_weight=0.05)),
]

every_case = pytest.mark.parametrize("case", CONTINUOUS + DISCRETE, ids=lambda case: case.name)
every_density = pytest.mark.parametrize("case", CONTINUOUS, ids=lambda case: case.name)
# For what a tied scale cannot change, or what the same code does for both: compilations are dear.
UNTIED = [case for case in CONTINUOUS if not case.name.endswith("-tied")]
every_untied_case = pytest.mark.parametrize("case", UNTIED + DISCRETE, ids=lambda case: case.name)
every_untied_density = pytest.mark.parametrize("case", UNTIED, ids=lambda case: case.name)
every_discrete = pytest.mark.parametrize("case", DISCRETE, ids=lambda case: case.name)

#: One shape for most tests, so that each case compiles once per dtype.
ROWS, K, D = 8, 3, 2


def rows(case, dtype=np.float64):
    """A head of ``K`` components over ``D`` dimensions, raw outputs and targets: ``ROWS`` rows."""
    rng, head = case.rng(), case.make(K, D)
    raw = oracles.random_raw(rng, head, (ROWS,), dtype)
    return head, raw, oracles.random_target(rng, head, (ROWS,), dtype)


def numpy_rows(case, dtype=np.float64):
    """The same in NumPy's arrays: a slice of them is no program."""
    head, *arrays = rows(case, dtype)
    return head, *map(np.array, arrays)


@jax.jit
def answers(density, y):
    """What the contract asks of a density, in one program."""
    result = {"log_prob": jaxmdn.log_prob(density, y)}
    if not density.discrete:
        functions = jaxmdn.mean, jaxmdn.variance, jaxmdn.covariance
        result |= {function.__name__: function(density) for function in functions}
        result["cdf"] = jaxmdn.cdf(density, y)
    return result


@partial(jax.jit, static_argnums=0)
def log_prob_and_gradients(head, raw, y):
    """Each row's log-density with its gradients in ``raw`` and (where it is real) ``y``."""
    if head.real_valued:
        value, pull = jax.vjp(lambda raw, y: jaxmdn.log_prob(head(raw), y), raw, y)
    else:
        value, pull = jax.vjp(lambda raw: jaxmdn.log_prob(head(raw), y), raw)
    return value, pull(jax.numpy.ones_like(value))
