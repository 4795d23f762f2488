"""The logarithmic score: the negative log-likelihood, seen as a score."""

from __future__ import annotations

from jaxmdn import meshes
from jaxmdn.components.base import Density
from jaxmdn.mixture import check_target
from jaxmdn.typing import Array, Float, Num


@meshes.jit
def log_score(density: Density, y: Num[Array, "..."]) -> Float[Array, "..."]:
    """Logarithmic score, ``-log p(y)``, ``[...]``, in nats (Good 1952)."""
    check_target("log_score", density, y)
    return -density.log_prob(y)
