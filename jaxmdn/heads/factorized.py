"""The head of joint mixtures whose components have a family of their own for every output.

Raw outputs are laid out in blocks, each flattened row by row. First the K logits; then, for every
group of outputs that share a family (in the order in which the families first appear) and for every
parameter of that family, a block ``K x (outputs of the group) x (numbers per output)``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmdn import checks, numerics
from jaxmdn.components import Independent
from jaxmdn.heads import links
from jaxmdn.heads.base import Head
from jaxmdn.heads.families import KINDS, Family, Kind, resolve
from jaxmdn.mixture import Mixture
from jaxmdn.typing import Array, Float

#: The default link of rates and concentrations: of raw outputs that are logarithms, up to 2^20.
MAGNITUDE = links.Softplus(knee=2.0**20)


@dataclasses.dataclass(frozen=True)
class FactorizedHead(Head):
    """Raw network outputs to one joint mixture over outputs of different kinds.

    ``p(y) = sum_k w_k prod_d p_kd(y_d)``, where ``p_kd`` is of family ``families[d]``: a linear, an
    exponential, a sigmoid and a tanh unit side by side, as one proper density. Given the component
    the outputs are independent; through the component they are not.

    Args:
      families: for each output a name such as ``"gamma"``, a class declared with
        ``@jaxmdn.components.family``, or a :class:`Family` with constants; a single one for a
        scalar target. A family of several dimensions stands once for all of its outputs.
      num_components: K.
      scale_link: link of every positive parameter; a :mod:`jaxmdn.heads.links` link or its name.
        None: softplus, but for rates and concentrations, which may be large, its form that is
        exponential up to a million (:data:`MAGNITUDE`).
      min_scale: added to the link's value. Default 1e-3.
      min_weight: lower bound of every mixing coefficient; ``K min_weight < 1``. Default 0: off.
      units: for each output a positive number, in its own unit, by which locations and scales (the
        floor of a scale, too) are multiplied; one number for all. Default 1: raw outputs that make
        a location of a million cannot be learnt. ``fit`` sets it for outputs that it cannot
        standardise, see :func:`jaxmdn.heads.in_units`.

    Raises:
      ValueError, TypeError: on impossible configuration, naming the argument.

    Targets are floating-point arrays ``[..., D]``, whole numbers included (integer arrays serve too
    where all outputs are discrete). Outside a family's support the log-density is ``-inf``.

    >>> import jax.numpy as jnp, jaxmdn
    >>> head = jaxmdn.FactorizedHead(("normal", "student_t"), num_components=3)
    >>> mixture = head(jnp.zeros((5, head.num_outputs)))
    >>> jaxmdn.log_prob(mixture, jnp.ones((5, 2))).shape
    (5,)

    References:
      Bishop (1994), Mixture Density Networks, section 3 (kernels of several kinds).
    """

    families: Any  # a tuple of families once built
    num_components: int
    scale_link: links.Link | str | None = dataclasses.field(default=None, kw_only=True)
    min_scale: float = dataclasses.field(default=1e-3, kw_only=True)
    min_weight: float = dataclasses.field(default=0.0, kw_only=True)
    units: Any = dataclasses.field(default=1.0, kw_only=True)  # a tuple once built

    def __post_init__(self) -> None:
        name = "FactorizedHead"
        single = isinstance(self.families, (str, type, Family))
        families = (self.families,) if single else tuple(self.families)
        if not families:
            raise ValueError(f"{name}: families is empty; name one family per output.")
        resolved = tuple(resolve(name, family) for family in families)
        object.__setattr__(self, "families", resolved)
        checks.require_count(name, "num_components", self.num_components)
        checks.require_number(name, "min_scale", self.min_scale, lower=0.0)
        upper = 1.0 / self.num_components
        checks.require_number(name, "min_weight", self.min_weight, lower=0.0, upper=upper)
        links.use_python_numbers(self)
        if self.scale_link is not None:
            object.__setattr__(self, "scale_link", links.resolve(self.scale_link))
        links.require_positive(name, self.link, self.min_scale)
        units = np.ravel(self.units).tolist()
        if len(units) not in (1, self.event_dim):
            raise ValueError(
                f"{name}: units must be one number, or one for each of the {self.event_dim} "
                f"outputs, got {len(units)}."
            )
        for number in units:
            checks.require_number(name, "units", number, lower=0.0, strict_lower=True)
        units = units * self.event_dim if len(units) == 1 else units
        object.__setattr__(self, "units", tuple(map(float, units)))

    @property
    def link(self) -> links.Link:
        """The link of scales."""
        return links.resolve("softplus" if self.scale_link is None else self.scale_link)

    @property
    def magnitude_link(self) -> links.Link:
        """The link of rates and concentrations."""
        return MAGNITUDE if self.scale_link is None else self.link

    @property
    def event_dim(self) -> int:
        return sum(family.event_size for family in self.families)

    @property
    def groups(self) -> tuple[tuple[Family, tuple[int, ...]], ...]:
        """Families in order of appearance, each with the outputs it describes."""
        found: dict[Any, tuple[int, ...]] = {}
        start = 0
        for place, family in enumerate(self.families):
            own = tuple(range(start, start + family.event_size))
            start += family.event_size
            key = (family, place if family.joint else None)  # a joint family shares no parameters
            found[key] = (*found.get(key, ()), *own)
        return tuple((family, own) for (family, _), own in found.items())

    @property
    def blocks(self) -> tuple[tuple[int, str, tuple[int, ...]], ...]:
        """Group, parameter and shape ``[K, ...]`` of each block of raw outputs after the logits."""
        return tuple(
            (g, name, (self.num_components, *family.event_shape(name, len(own))))
            for g, (family, own) in enumerate(self.groups)
            for name in family.parameters
        )

    @property
    def num_outputs(self) -> int:
        return self.num_components + sum(math.prod(shape) for _, _, shape in self.blocks)

    def from_raw(self, group: int, name: str, raw: Array) -> Array:
        """A parameter of a group, ``[..., outputs of the group, numbers per output]``."""
        kind, unit = self._kind_and_unit(group, name, raw)
        return unit * kind.build(raw, self)

    def to_raw(self, group: int, name: str, value: Array) -> Array:
        """What :meth:`from_raw` makes the parameter of."""
        kind, unit = self._kind_and_unit(group, name, value)
        return kind.inverse(value / unit, self)

    def within_reach(self, group: int, name: str, value: Array) -> Array:
        """The nearest values that :meth:`from_raw` can make."""
        kind, unit = self._kind_and_unit(group, name, value)
        return unit * kind.within_reach(value / unit, self)

    def _kind_and_unit(self, group: int, name: str, like: Array) -> tuple[Kind, Array | float]:
        """How a parameter is made, and its unit, against ``[outputs, numbers per output]``."""
        family, own = self.groups[group]
        meta = family.parameters[name]
        units = {self.units[d] for d in own} if meta["in_unit"] else {1.0}
        if len(units) == 1:
            return KINDS[meta["kind"]], units.pop()
        unit = jnp.array([self.units[d] for d in own], like.dtype)
        return KINDS[meta["kind"]], unit.reshape(-1, *(1,) * (meta["rank"] - 1))

    def build(self, raw: Float[Array, "... P"]) -> Mixture:
        shapes = ((self.num_components,), *(shape for _, _, shape in self.blocks))
        logits, *blocks = numerics.cut(raw, shapes)
        values: list[dict[str, Array]] = [{} for _ in self.groups]
        for (g, name, _), block in zip(self.blocks, blocks, strict=True):
            values[g][name] = self.from_raw(g, name, block)
        lead = raw.shape[:-1]
        parts = [f.build(v, lead) for (f, _), v in zip(self.groups, values, strict=True)]
        components = parts[0]
        if len(parts) > 1:
            own = tuple(dims for _, dims in self.groups)
            components = Independent(parts=tuple(parts), dims=own)
        logits = numerics.floor_log_weights(logits, self.min_weight)
        return Mixture(logits=logits, components=components)

    def inverse(self, density: Mixture) -> Float[Array, "... P"]:
        components, batch = density.components, density.batch_shape
        parts = components.parts if isinstance(components, Independent) else (components,)
        values = [f.values(part) for (f, _), part in zip(self.groups, parts, strict=True)]
        blocks = [numerics.unfloor_log_weights(density.logits, self.min_weight)]
        for g, name, shape in self.blocks:
            value = jnp.broadcast_to(self.to_raw(g, name, values[g][name]), (*batch, *shape))
            blocks.append(value.reshape(*batch, math.prod(shape)))
        return jnp.concatenate(blocks, axis=-1)
