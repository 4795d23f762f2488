"""Heads in units of the data, where the data cannot be brought to the head's unit.

``fit`` standardises a target whose density allows it. Between fixed bounds, or on a grid, nothing
may be shifted or scaled: there the head measures its locations and scales in a unit of the data's
size instead, so that a network can learn them, and its floor of a scale fits.
"""

from __future__ import annotations

import dataclasses
import math
from functools import singledispatch
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmdn import meshes, numerics
from jaxmdn.heads.base import Head
from jaxmdn.heads.class_conditional import ClassConditionalHead
from jaxmdn.heads.factorized import FactorizedHead
from jaxmdn.heads.independent import IndependentHead
from jaxmdn.mixture.class_conditional import Labeled
from jaxmdn.typing import Array, Float, Num


@singledispatch
def in_units(head: Head, y: Any, weights: Float[Array, "N"] | None = None) -> Any:
    """The head with ``units`` of the size of its targets, where those cannot be standardised.

    ``units[d] = 2^round(log2(s_d))`` with the standard deviation ``s_d`` of the outputs whose
    family has locations or scales but is closed under no change of unit (``closed_under``): the
    truncated normal, the discretised logistic, families of your own. Powers of two keep the
    parameters exact, and let data of about the same size share one compiled program. Everything
    else stays as it is, heads of other kinds too.

    Args:
      head: a head; ``fit`` puts the one returned into the network.
      y: targets ``[N, D]``, or ``Labeled``.
      weights: nonnegative row weights ``[N]``.

    >>> import jax.numpy as jnp
    >>> in_units(FactorizedHead("truncated_normal", 3), jnp.array([[1e6], [3e6]])).units
    (1048576.0,)
    """
    return head


@in_units.register
def _factorized(head: FactorizedHead, y: Any, weights: Any = None) -> FactorizedHead:
    units, closure = list(head.units), head.closure
    measured = [
        d
        for family, own in head.groups
        if any(meta["in_unit"] for meta in family.parameters.values())
        for d in own
        if closure[d] == "none"
    ]
    if not measured:
        return head
    share = jnp.ones(y.shape[0]) if weights is None else weights
    for d, spread in zip(measured, np.asarray(_spread(y, share))[measured], strict=True):
        units[d] = 2.0 ** round(math.log2(spread)) if spread > 0 else units[d]
    return dataclasses.replace(head, units=tuple(units))


@meshes.jit
def _spread(y: Num[Array, "N D"], weights: Float[Array, "N"]) -> Float[Array, "D"]:
    """The weighted standard deviation of each column, on all devices that hold rows."""
    rows, share = numerics.upcast(y, weights)
    share = (share / jnp.sum(share))[:, None]
    centred = rows - jnp.sum(share * rows, axis=0)
    largest = jnp.max(jnp.abs(centred), axis=0)  # a square may leave the range of the floats
    size = jnp.where(largest > 0, largest, 1)
    return size * jnp.sqrt(jnp.sum(share * (centred / size) ** 2, axis=0))


@in_units.register
def _independent(head: IndependentHead, y: Any, weights: Any = None) -> IndependentHead:
    groups = (y[:, np.array(dims)] for dims in head.dims)
    pairs = zip(head.heads, groups, strict=True)
    return dataclasses.replace(head, heads=tuple(in_units(*pair, weights) for pair in pairs))


@in_units.register
def _class_conditional(
    head: ClassConditionalHead, y: Any, weights: Any = None
) -> ClassConditionalHead:
    values = y.y if isinstance(y, Labeled) else y
    return dataclasses.replace(head, head=in_units(head.head, values, weights))
