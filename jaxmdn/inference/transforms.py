"""Densities made from a density: some of its dimensions, or the others once some are known."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxmdn import checks
from jaxmdn.components.base import Density
from jaxmdn.typing import Array, Float


def marginal(mixture: Any, dims: Sequence[int]) -> Any:
    """Density of some of the dimensions, ``p(y_dims)``, in the order given.

    Args:
      mixture: a mixture (or a single component family) of batch shape ``[...]`` over D dimensions.
      dims: indices in ``0 .. D - 1``, each at most once (static).

    Returns:
      The same family over ``len(dims)`` dimensions, exact: nothing is approximated.

    Raises:
      ValueError: if ``dims`` is empty, out of range or repeated.
      TypeError: for a density whose dimensions have no marginals of their own (categorical).

    >>> import jax.numpy as jnp, jaxmdn
    >>> mixture = jaxmdn.NormalHead(4, 3, covariance="full")(jnp.zeros((5, 40)))
    >>> pair = jaxmdn.marginal(mixture, (2, 0))
    >>> pair.event_dim, pair.batch_shape
    (2, (5,))
    """
    _require_density("marginal", mixture)
    return _marginal(mixture, _check_dims("marginal", dims, mixture.event_dim))


def condition(mixture: Any, dims: Sequence[int], values: Float[Array, "... G"]) -> Any:
    """Density of the other dimensions once some are known, ``p(y_rest | y_dims = values)``.

    Every component is conditioned, and weighted by how well it explains the values:
    ``w_k p_k(values)``. The logits of the result are these log-numbers, so that their logsumexp is
    ``log p(y_dims = values)``.

    Args:
      mixture: a mixture of batch shape ``[...]`` over D dimensions.
      dims: the known dimensions, in any order, each at most once, not all of them (static).
      values: ``[..., len(dims)]``, in the order of ``dims``; leading axes broadcast.

    Returns:
      The same family over the other dimensions, in their original order.

    Raises:
      ValueError: as :func:`marginal`, if ``dims`` are all dimensions, or on a wrong shape.
      TypeError: for a density that cannot be conditioned.

    Limits: values that no component reaches (all densities underflow) give a density of NaN.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.FullNormal.from_covariance(
    ...     jnp.zeros((1, 2)), jnp.array([[[1.0, 0.5], [0.5, 1.0]]])
    ... )
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    >>> rest = jaxmdn.condition(mixture, (1,), jnp.array([2.0]))
    >>> round(float(jaxmdn.mean(rest)[0]), 4), round(float(jaxmdn.variance(rest)[0]), 4)
    (1.0, 0.75)

    References:
      Bishop (2006), Pattern Recognition and Machine Learning, eq. 2.81-2.82 (one component); for
      the low-rank form see :mod:`jaxmdn.components.low_rank_normal`.
    """
    _require_density("condition", mixture)
    known = _check_dims("condition", dims, mixture.event_dim)
    if len(known) == mixture.event_dim:
        raise ValueError(
            f"condition: dims {list(known)} are all dimensions, so that nothing is left; use "
            f"log_prob for the density at a point."
        )
    checks.require_floating("condition", "values", values)
    checks.require_last_axis("condition", "values", values, len(known), "one value per known dim")
    checks.require_broadcastable("condition", density=mixture.batch_shape, values=values.shape[:-1])
    return _condition(mixture, known, values)


@partial(jax.jit, static_argnums=1)
def _marginal(mixture: Density, dims: tuple[int, ...]) -> Density:
    return mixture.marginal(dims)


@partial(jax.jit, static_argnums=1)
def _condition(mixture: Density, dims: tuple[int, ...], values: Array) -> Density:
    return mixture.condition(dims, values)[1]


def _require_density(function: str, mixture: Any) -> None:
    if not isinstance(mixture, Density):
        raise TypeError(f"{function}: expected a density, got {type(mixture).__name__}.")


def _check_dims(function: str, dims: Sequence[int], event_dim: int) -> tuple[int, ...]:
    """Return ``dims`` as a tuple of Python integers, or raise."""
    if isinstance(dims, (int, np.integer)) or any(
        isinstance(d, bool) or not isinstance(d, (int, np.integer)) for d in dims
    ):
        raise TypeError(
            f"{function}: dims must be a sequence of Python ints, such as (0, 2), got {dims!r}."
        )
    known = tuple(int(d) for d in dims)
    wrong = [d for d in known if not 0 <= d < event_dim]
    if not known or wrong or len(set(known)) < len(known):
        raise ValueError(
            f"{function}: dims must be distinct indices in 0 .. {event_dim - 1}, at least one, "
            f"got {list(known)}."
        )
    return known


__all__ = ["condition", "marginal"]
