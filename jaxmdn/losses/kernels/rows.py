"""A block of rows: raw outputs ``[n, P]`` and targets to the NLL and its gradient.

:class:`NormalHead` has hand-derived gradients. Any other head is differentiated automatically, row
block by row block: no faster than autodiff over everything at once, but in bounded memory.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp

from jaxmdn import meshes, numerics
from jaxmdn.components import low_rank_density
from jaxmdn.components.normal_pullback import Pullback, normal
from jaxmdn.heads import Head, NormalHead
from jaxmdn.losses.kernels.full_normal import full_normal
from jaxmdn.losses.reductions import silence
from jaxmdn.mixture.mixing import Mixed, mix
from jaxmdn.typing import Array, Bool, Float


class Gradient(NamedTuple):
    """The NLL of a block of rows and the gradient of ``sum(coefficient * nll)``.

    Attributes:
      nll: ``[n]``, not multiplied by the coefficient.
      raw: gradient of the raw outputs in adjoining column blocks, ``[n, P_b]`` with
        ``sum(P_b) = P``: a caller writes each to its place, which spares a concatenation.
      y: gradients of the targets' :func:`real_leaves`; empty where they were not asked for.
    """

    nll: Float[Array, "n"]
    raw: tuple[Float[Array, "n P_b"], ...]
    y: tuple[Float[Array, "..."], ...]


def real_leaves(y: Any) -> list[Any]:
    """Return the leaves of a target that can be differentiated: not class indices."""
    return [leaf for leaf in jax.tree.leaves(y) if jnp.issubdtype(leaf.dtype, jnp.floating)]


def has_closed_form(head: Head) -> TypeGuard[NormalHead]:
    """Whether the gradient is hand-derived for this head."""
    return type(head) is NormalHead


def value(
    head: Head,
    raw: Float[Array, "n P"],
    y: Any,
    kept: Bool[Array, "n"] | None = None,
    bias: Float[Array, "P"] | None = None,
) -> Float[Array, "n"]:
    """Return the NLL of each row, nats; of one that is not ``kept``, that of zeros.

    ``bias`` is added to the raw outputs: elsewhere that might be a pass over them.
    """
    raw = silence(_biased(raw, bias), kept)
    if not has_closed_form(head) or head.covariance in ("isotropic", "diagonal"):
        return -head.log_prob(raw, y)  # there the plain form is the faster one
    return _mix(head, raw, _components(head, raw, y)[1], jnp.ones(1, raw.dtype)).nll


def gradient(
    head: Head,
    raw: Float[Array, "n P"],
    y: Any,
    coefficient: Float[Array, "#n"],
    kept: Bool[Array, "n"] | None = None,
    bias: Float[Array, "P"] | None = None,
    *,
    dtype: Any,
    with_y: bool = False,
) -> Gradient:
    """Return the NLL of each row and the gradient of ``sum(coefficient * nll)``.

    ``dtype`` is that of the raw outputs' gradient, computed in float32 at least.
    """
    raw = silence(_biased(raw, bias), kept)
    if not has_closed_form(head):
        found = _autodiff(head, raw, y, coefficient, with_y=with_y)
        return found._replace(raw=(found.raw[0].astype(dtype),))
    slope, components = _components(head, raw, y)
    mixed = _mix(head, raw, components, coefficient.astype(raw.dtype))
    loc, scale, *shape = components.pull(mixed.responsibilities)
    parts = (mixed.logits_gradient, loc, scale * slope, *shape)
    blocks = tuple(part.reshape(raw.shape[0], -1).astype(dtype) for part in parts)
    return Gradient(mixed.nll, blocks, (-jnp.sum(loc, axis=1),) if with_y else ())


def _biased(raw: Array, bias: Array | None) -> Array:
    (raw,) = numerics.upcast(raw)
    return raw if bias is None else raw + bias.astype(raw.dtype)


def _mix(head: NormalHead, raw: Float[Array, "n P"], components: Pullback, c: Array) -> Mixed:
    logits = raw[:, : head.num_components]
    return mix(logits, components.log_prob, c, head.min_weight)


def _components(
    head: NormalHead, raw: Float[Array, "n P"], y: Float[Array, "n D"]
) -> tuple[Array, Pullback]:
    """Return the link's slope and the components with their pullback."""
    _, loc, raw_scale, *shape = head.split(raw)
    scale, slope = head.link.value_and_slope(raw_scale)
    scale = scale + head.min_scale
    y = y.astype(raw.dtype)
    if head.covariance == "full":
        log_prob, whole = full_normal(loc, scale, head.spread_edges(shape[0]), y)

        def pull(r: Array) -> tuple[Array, ...]:
            *rest, packed = whole(r)
            return *rest, packed if head.graph is None else packed[..., head.edges]

        return slope, Pullback(log_prob, pull)
    if head.covariance == "low_rank":
        density = partial(low_rank_density.log_prob, y=y[:, None, :])
        log_prob, transposed = jax.vjp(density, loc, scale, *shape)
        return slope, Pullback(log_prob, lambda r: transposed(-r))
    return slope, normal(loc, scale, y)


def _autodiff(
    head: Head, raw: Float[Array, "n P"], y: Any, coefficient: Array, *, with_y: bool
) -> Gradient:
    if with_y:
        values, pullback = jax.vjp(lambda raw, y: -head.log_prob(raw, y), raw, y)
    else:
        values, pullback = jax.vjp(lambda raw: -head.log_prob(raw, y), raw)
    cotangent = jnp.broadcast_to(coefficient, values.shape).astype(values.dtype)
    _, cotangent = meshes.vary_alike(values, cotangent)
    raw_gradient, *y_gradient = pullback(cotangent)
    return Gradient(values, (raw_gradient,), tuple(real_leaves(y_gradient)))
