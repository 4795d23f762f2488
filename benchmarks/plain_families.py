"""Other families than the normal as plain JAX has them: ``jax.scipy.stats`` and a log-sum-exp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.stats import gamma, laplace

from jaxmdn import CategoricalHead, FactorizedHead
from jaxmdn.heads import Head, factorized

NAMES = ("laplace", "gamma", "categorical")


def create(name: str, components: int, dim: int, link: str) -> Head:
    """jaxmdn's head, with its default links or exponential ones; of classes, as many as components.

    An exponential link has no floor, as in ``cases.Case``.
    """
    if name == "categorical":
        return CategoricalHead(components)
    own = {} if link == "softplus" else {"scale_link": "exp", "min_scale": 0.0}
    return FactorizedHead((name,) * dim, components, **own)


def nll(name: str, head: Any, link: str) -> Callable[[Any, Any], Any]:
    """The mean NLL ``(raw, y)`` of the same density, by its textbook formula."""
    if name == "categorical":
        return lambda raw, y: -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(raw), y, axis=-1))
    K, D, floor, knee = (
        head.num_components,
        head.event_dim,
        head.min_scale,
        factorized.MAGNITUDE.knee,
    )

    def positive(raw: Any) -> Any:
        return jnp.exp(raw) if link == "exp" else floor + jax.nn.softplus(raw)

    def magnitude(raw: Any) -> Any:
        if link == "exp":
            return jnp.exp(raw)
        return floor + knee * jax.nn.softplus(raw - jnp.log(knee))

    def mean(raw: Any, y: Any) -> Any:
        first, second = (raw[:, K + i * K * D :][:, : K * D].reshape(-1, K, D) for i in range(2))
        if name == "laplace":
            each = laplace.logpdf(y[:, None], first, positive(second))
        else:
            concentration, rate = magnitude(first), magnitude(second)
            each = gamma.logpdf(y[:, None] * rate, concentration) + jnp.log(rate)
        weights = jax.nn.log_softmax(raw[:, :K])
        return -jnp.mean(jax.nn.logsumexp(weights + each.sum(axis=-1), axis=-1))

    return mean


__all__ = ["NAMES", "create", "nll"]
