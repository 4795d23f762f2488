"""Targets on a grid: the probability of a cell in the place of a density."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxmdn import numerics
from jaxmdn.components import Independent
from jaxmdn.components.univariate import Univariate
from jaxmdn.mixture import Mixture, check_target
from jaxmdn.typing import Array, ArrayLike, Float


def cell_log_prob(
    mixture: Mixture,
    y: Float[Array, "... D"],
    width: Float[ArrayLike, "..."],
    *,
    function: str = "cell_log_prob",
) -> Float[Array, "..."]:
    """Log-probability of the cell around a target that was rounded, ``[...]``, nats.

    ``log sum_k w_k prod_d P(y_d - width_d / 2 < Y_kd <= y_d + width_d / 2)``, at most zero.

    Args:
      mixture: of continuous components, independent in their dimensions, batch shape ``[...]``.
      y: targets ``[..., D]``, centres of cells.
      width: the cells' widths, positive: a number, ``[D]`` or ``[..., D]``, in the target's unit.
      function: the caller's name, for messages.

    Limits: a cell far narrower than the scale counts as density times width, where that is exact
    to the dtype and a difference of distribution functions is not.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((1, 1)), scale=jnp.ones((1, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    >>> print(f"{jnp.exp(jaxmdn.inference.cell_log_prob(mixture, jnp.zeros(1), 2.0)):.4f}")
    0.6827

    References:
      Heitjan (1989), Inference from grouped continuous data, section 2.
    """
    if not isinstance(mixture, Mixture) or isinstance(mixture.components, Mixture):
        raise TypeError(f"{function}: expected a plain mixture, got {type(mixture).__name__}.")
    check_target(function, mixture, y)
    parts = univariate_parts(function, mixture.components, scale=False)
    y = numerics.upcast(y)[0]
    width = jnp.broadcast_to(jnp.asarray(width, y.dtype), y.shape)
    each = [
        jnp.sum(_log_cell(part, pick(y, dims), pick(width, dims)), axis=-1) for part, dims in parts
    ]
    return numerics.logsumexp(mixture.log_weights() + sum(numerics.upcast(*each)))


def log_likelihood(
    density: Any, y: Any, width: Float[ArrayLike, "..."] | None = None
) -> Float[Array, "..."]:
    """The log-density of targets, or the log-probability of their cells if there is a width."""
    return density.log_prob(y) if width is None else cell_log_prob(density, y, width)


def _log_cell(part: Any, y: Float[Array, "... D"], width: Float[Array, "... D"]) -> Array:
    """Log-probability of each dimension's cell, by the tail in which it lies."""
    low, high = y - 0.5 * width, y + 0.5 * width
    upper = part.log_cdf(y) > part.log_survival(y)
    near = jnp.where(upper, part.log_survival(low), part.log_cdf(high))
    far = jnp.where(upper, part.log_survival(high), part.log_cdf(low))
    gap = far - near  # log of the ratio of the two tails, at most zero
    # Rounding leaves eps (1 + |near|) of the gap. A narrow cell has the mass of a density that is
    # exponential across it, width p(y) sinh(a) / a with a = gap / 2; the curvature left out is
    # width^2 / 24 in units of the scale.
    small = float(jnp.finfo(y.dtype).eps) ** (1 / 3)
    narrow = ~(gap < -small * (1 + jnp.abs(near)))
    exact = jnp.where(narrow, 0, near) + jnp.log(-jnp.expm1(jnp.where(narrow, -1.0, gap)))
    a = jnp.where(narrow & jnp.isfinite(gap), 0.5 * gap, 0.0)
    flat = jnp.abs(a) < small
    b = jnp.where(flat, -1.0, a)
    sinhc = jnp.where(flat, a * a / 6, jnp.log(jnp.expm1(2 * b) / (2 * b)) - b)
    return jnp.where(narrow, part.marginal_log_prob(y) + jnp.log(width) + sinhc, exact)


def univariate_parts(
    function: str, components: Any, *, scale: bool = True
) -> list[tuple[Any, Any]]:
    """Families of one dimension at a time, with the dimensions that they describe."""
    if isinstance(components, Independent):
        pairs = zip(components.parts, components.dims, strict=True)
        return [
            (univariate_parts(function, part, scale=scale)[0][0], list(dims))
            for part, dims in pairs
        ]
    lacks = scale and "scale" not in components.event_ranks
    if not isinstance(components, Univariate) or lacks or components.discrete:
        what = "a scale of their own in every dimension" if scale else "a distribution function"
        raise TypeError(
            f"{function}: expected continuous components with {what}, got "
            f"{type(components).__name__}."
        )
    return [(components, slice(None))]


def pick(y: Float[Array, "... D"], dims: Any) -> Float[Array, "... 1 d"]:
    """Some dimensions of ``y [..., D]``, with an axis for the components."""
    return y[..., None, dims]
