"""Widening: every component of a mixture about its own location."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from jaxmdn import numerics
from jaxmdn.components import FullNormal, Independent, LowRankNormal
from jaxmdn.mixture import Mixture
from jaxmdn.typing import Array, ArrayLike, Float


def has_scales(density: Any) -> bool:
    """Whether :func:`widen` can act: all components have a location and a scale (static)."""
    return isinstance(density, Mixture) and scaled(density.components)


def scaled(family: Any) -> bool:
    """Whether a component family has a location and a scale, in the target's own unit."""
    if isinstance(family, Independent):
        return all(scaled(part) for part in family.parts)
    named = isinstance(family, FullNormal) or {"loc", "scale"} <= set(family.event_ranks)
    # A log-normal has both names, of the logarithm: only of a real line are they the target's own.
    return named and set(family.closure) <= {"affine", "positive_affine"}


def widen(
    mixture: Mixture, factor: Float[ArrayLike, "..."] = 1.0, noise: Float[ArrayLike, "..."] = 0.0
) -> Mixture:
    """Widen every component about its location: ``scale -> sqrt((factor scale)^2 + noise^2)``.

    For normals ``noise`` is the standard deviation of independent noise on the target; for all
    families it is a smooth floor under the scale.

    Args:
      mixture: a mixture of components with a location and a scale, batch shape ``[...]``.
      factor: ``[...]``, nonnegative.
      noise: ``[..., D]`` or a number, nonnegative, in the target's unit.

    Raises:
      TypeError: for components without a location and a scale.

    >>> import jax.numpy as jnp, jaxmdn
    >>> mixture = jaxmdn.NormalHead(3, 1, scale_link="exp", min_scale=0.0)(jnp.zeros(9))
    >>> wide = jaxmdn.inference.widen(mixture, 0.6, jnp.array([0.8]))
    >>> [round(float(scale), 4) for scale in wide.components.scale[:, 0]]
    [1.0, 1.0, 1.0]
    """
    if not has_scales(mixture):
        kind = type(getattr(mixture, "components", mixture)).__name__
        raise TypeError(
            f"widen: expected a mixture of components with a location and a scale, got {kind}."
        )
    none = isinstance(noise, int | float) and noise == 0  # spares a factorisation of covariances
    (logits,) = numerics.upcast(mixture.logits)
    factor, noise = jnp.asarray(factor, logits.dtype), jnp.asarray(noise, logits.dtype)
    components = stretched(mixture.components, factor[..., None])
    if not none:
        noise = jnp.broadcast_to(noise, (*noise.shape[:-1], mixture.event_dim))
        components = _blurred(components, noise[..., None, :])
    return dataclasses.replace(mixture, components=components)


def stretched(components: Any, factor: Float[Array, "... K"]) -> Any:
    """The components with all deviations from their locations multiplied by a factor."""
    if isinstance(components, Independent):
        parts = tuple(stretched(part, factor) for part in components.parts)
        return dataclasses.replace(components, parts=parts)
    changes = {}
    for name, rank in (("scale", 1), ("factor", 2), ("whitening_tril", 2)):
        if name in components.event_ranks:
            old, times = numerics.upcast(
                getattr(components, name), factor.reshape(*factor.shape, *(1,) * rank)
            )
            new = old / times if name == "whitening_tril" else old * times
            changes[name] = new.astype(components.dtype)
    return dataclasses.replace(components, **changes)


def _blurred(components: Any, noise: Float[Array, "... K D"]) -> Any:
    """The components with independent noise on every dimension."""
    if isinstance(components, Independent):
        pairs = zip(components.parts, components.dims, strict=True)
        parts = tuple(_blurred(part, noise[..., list(dims)]) for part, dims in pairs)
        return dataclasses.replace(components, parts=parts)
    if isinstance(components, FullNormal):
        return _blurred_normal(components, noise)
    scale, noise = numerics.upcast(components.scale, noise)
    return dataclasses.replace(components, scale=jnp.hypot(scale, noise).astype(components.dtype))


def _blurred_normal(components: FullNormal, noise: Float[Array, "... K D"]) -> FullNormal:
    """With ``A = W N`` the covariance is ``W^-1 (1 + A A') W^-T``, and ``W`` becomes ``R^-T W``.

    ``R`` is the triangle of ``[1; A']``: a square would lose small scales beside large ones.
    """
    whitening, noise = numerics.upcast(components.whitening_tril, noise)
    spread = whitening * noise[..., None, :]
    one = jnp.broadcast_to(jnp.eye(components.event_dim, dtype=spread.dtype), spread.shape)
    root = numerics.triangular(jnp.concatenate([one, spread], axis=-1))[1]
    whitening = jnp.tril(numerics.invert_tril(root) @ whitening)
    return dataclasses.replace(components, whitening_tril=whitening.astype(components.dtype))


def placed(components: Any, loc: Float[Array, "... D"], scale: Float[Array, "... D"]) -> Any:
    """The same family at ``loc`` with ``scale`` in every dimension, without correlations."""
    if isinstance(components, Independent):
        pairs = zip(components.parts, components.dims, strict=True)
        parts = tuple(placed(part, loc[..., list(d)], scale[..., list(d)]) for part, d in pairs)
        return dataclasses.replace(components, parts=parts)
    changes: dict[str, Array] = {"loc": jnp.broadcast_to(loc, components.loc.shape)}
    if isinstance(components, FullNormal):
        whitening = jnp.eye(scale.shape[-1], dtype=scale.dtype) / scale[..., None]
        changes["whitening_tril"] = jnp.broadcast_to(whitening, components.whitening_tril.shape)
    else:
        changes["scale"] = jnp.broadcast_to(scale, (*components.scale.shape[:-1], scale.shape[-1]))
    if isinstance(components, LowRankNormal):
        changes["factor"] = jnp.zeros_like(components.factor)
    return dataclasses.replace(
        components, **{k: v.astype(components.dtype) for k, v in changes.items()}
    )
