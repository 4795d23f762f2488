"""The joint density of an autoregressive model: one forward pass to evaluate, several to draw."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import meshes, numerics
from jaxmdn.components import Independent
from jaxmdn.components.base import Density
from jaxmdn.components.declare import register
from jaxmdn.components.support import Support
from jaxmdn.heads import Head
from jaxmdn.heads.graph import generations
from jaxmdn.mixture import check_target
from jaxmdn.nn.masked import MaskedNetwork
from jaxmdn.typing import Array, ArrayLike, Bool, Float, Key, Num, Parameter


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoregressiveDensity(Density):
    """``p(y | x) = prod_d p_d(y_d | x, y_parents(d))`` at given inputs; what the model returns.

    ``jaxmdn.log_prob``, ``jaxmdn.sample`` and ``jaxmdn.rosenblatt`` take it. Means, variances,
    marginals and cdfs of the joint density have no closed form and raise ``TypeError``;
    :meth:`conditionals` have all that.

    Attributes:
      network: the network (static).
      params: its parameters.
      x: the inputs, ``[..., F]``.
      shift, scale: ``[D]``; the target is ``shift + scale`` times what the network models. None if
        they are the same.
    """

    network: MaskedNetwork = dataclasses.field(metadata={"static": True})
    params: Any
    x: Parameter
    shift: Any = None
    scale: Any = None

    event_ranks: ClassVar = {"x": 1}

    @property
    def support(self) -> tuple[Support, ...]:
        return self.network.head.support

    def in_support(self, y: Num[Array, "..."]) -> Bool[Array, "..."]:
        return self.network.head.in_support(self._own_unit(y))

    @property
    def event_dim(self) -> int:
        return self.network.head.event_dim

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(numerics.compute_dtype(self.x, *jax.tree.leaves(self.params)))

    def _own_unit(self, y: Num[Array, "..."]) -> Num[Array, "..."]:
        """The target as the network knows it."""
        if self.shift is None:
            return y
        return numerics.standardize(*numerics.upcast(y, self.shift, self.scale))

    def log_prob(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        def each(head: Head, raw: Array, y: Array) -> Array:
            return head.build(raw).log_prob(y[..., None])

        z = self._own_unit(y)
        raw = self.network.raw(self.params, self.x, z)
        value = jnp.sum(self.network.head.each(each, raw, z), axis=-1)  # [..., D] -> [...]
        if self.scale is None:
            return value
        value, scale = numerics.upcast(value, self.scale)
        log_scale = jnp.log(jnp.abs(scale))
        for d, own in enumerate(self.support):
            for atom in own.atoms:  # a probability, which has no unit
                there = (z[..., d : d + 1] == atom) & (np.arange(self.event_dim) == d)
                log_scale = jnp.where(there, 0, log_scale)
        return value - jnp.sum(log_scale, axis=-1)

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Num[Array, "..."]:
        head, network = self.network.head, self.network
        z = jnp.zeros((*shape, *self.batch_shape, self.event_dim), self.dtype)
        steps = [
            (generation, [d for d in group.outputs if d in generation], group.head)
            for generation in generations(head.graph)
            for group in head.groups
        ]
        drawn: tuple[int, ...] = ()
        inputs: tuple[Array, ...] = ()
        for key_step, (generation, outputs, inner) in zip(
            jax.random.split(key, len(steps)), steps, strict=True
        ):
            if not outputs:
                continue
            if generation != drawn:  # its parents are all drawn: one forward pass serves it
                drawn, inputs = generation, network.hidden(self.params, self.x, network.encode(z))
            raw = network.output(self.params, inputs, outputs)
            raw = raw.reshape(*raw.shape[:-1], len(outputs), -1)
            draws = inner.build(raw).sample(key_step)[..., 0]
            z = z.at[..., outputs].set(draws.astype(z.dtype))
        if self.shift is not None:
            z = self.shift.astype(z.dtype) + self.scale.astype(z.dtype) * z
        return z.astype(jnp.int32) if self.discrete else z

    def affine(self, shift: Float[Array, "D"], scale: Float[Array, "#D"]) -> AutoregressiveDensity:
        if self.discrete:
            return self
        unitless = np.array([kind == "none" for kind in self.closure])  # class indices and the like
        shift = jnp.where(unitless, 0, shift)
        scale = jnp.where(unitless, 1, jnp.broadcast_to(scale, shift.shape))
        if self.shift is not None:
            shift, scale = shift + scale * self.shift, scale * self.scale
        return dataclasses.replace(self, shift=shift, scale=scale)

    def given_before(self, y: Num[Array, "..."]) -> tuple[Density, Num[Array, "..."]]:
        places = tuple((d,) for d in range(self.event_dim))
        return Independent(parts=_conditionals(self, y), dims=places), y

    def conditionals(self, y: Num[ArrayLike, "... D"]) -> tuple[Any, ...]:
        """Each output's density given its parents' values in ``y``: D densities of event size 1.

        From them follow conditional means, cdfs and PITs: with ``each = density.conditionals(y)``,
        ``jaxmdn.cdf(each[d], y[..., d : d + 1])`` is uniform if the model is right.

        Limits: a value that is NaN makes its children's conditionals NaN, and no others.
        """
        y = jnp.asarray(y)
        check_target("conditionals", self, y)
        return _conditionals(self, y)


@meshes.jit
def _conditionals(density: AutoregressiveDensity, y: Array) -> tuple[Any, ...]:
    head, z = density.network.head, density._own_unit(y)
    known = jnp.where(jnp.isnan(z), jnp.zeros_like(z), z)
    raw = density.network.raw(density.params, density.x, known)
    result = []
    for d, (inner, columns) in enumerate(zip(head.heads, head.slices, strict=True)):
        lost = jnp.any(jnp.isnan(z[..., list(head.graph[d])]), axis=-1, keepdims=True)
        conditional: Any = inner.build(jnp.where(lost, jnp.nan, raw[..., columns]))
        if density.shift is not None:
            shift, scale = (
                part[d : d + 1].astype(conditional.dtype) for part in (density.shift, density.scale)
            )
            conditional = conditional.affine(shift, scale)
        result.append(conditional)
    return tuple(result)
