"""Where a target may lie, dimension by dimension: what a density, its head and ``fit`` ask.

A family says it once (``domain``). Guards, standardisation, the jumps of a distribution function
and the check of targets all follow from it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from jaxmdn import checks, numerics
from jaxmdn.typing import Array, Bool, Num

KINDS = ("real", "positive", "interval", "circle", "integers", "classes")
CLOSURES = ("affine", "positive_affine", "scale", "none")


@dataclasses.dataclass(frozen=True)
class Support:
    """The values that one dimension of a target can take.

    Attributes:
      kind: ``"real"``, ``"positive"``, ``"interval"``, ``"circle"`` (angles in radians),
        ``"integers"`` or ``"classes"`` (integers without an order).
      lower, upper: the ends; infinite where there is none.
      step: distance between neighbouring values, counted from ``lower``; 0 for a continuum.
      atoms: values of positive probability in a continuum.
      closed: whether finite ends of a continuum belong to it.
      closed_under: which maps of the target stay in the family: ``"affine"`` (shift, scale,
        reflection), ``"positive_affine"`` (no reflection), ``"scale"`` (a positive scale alone) or
        ``"none"``. ``fit`` standardises by what is allowed; the family's ``affine`` does it.

    >>> Support("interval", 0.0, 1.0).contains(jnp.array([-1.0, 0.5])).tolist()
    [False, True]
    """

    kind: str
    lower: float = -math.inf
    upper: float = math.inf
    step: float = 0.0
    atoms: tuple[float, ...] = ()
    closed: bool = False
    closed_under: str = "none"

    def __post_init__(self) -> None:
        checks.require_option("Support", "kind", self.kind, KINDS)
        checks.require_option("Support", "closed_under", self.closed_under, CLOSURES)

    @property
    def discrete(self) -> bool:
        """Whether all values have positive probability."""
        return self.step > 0

    @property
    def inside(self) -> float:
        """Some value well inside: the middle, or one unit from the only end."""
        ends = [end for end in (self.lower, self.upper) if math.isfinite(end)]
        if self.step or self.kind == "circle" or not ends:
            return self.lower if self.step else 0.0
        return sum(ends) / len(ends) + float(math.isinf(self.upper)) - float(math.isinf(self.lower))

    def interior(self, dtype: Any) -> tuple[float, float]:
        """Two numbers of a dtype inside a continuum, next to its ends where those do not belong.

        >>> Support("positive", lower=0.0).interior("float32")
        (1.1754943508222875e-38, 3.4028234663852886e+38)
        """
        kind = jnp.finfo(dtype)
        most, eps = float(kind.max), float(kind.eps)
        # Processors keep float16's subnormal numbers, which float32 has as any others.
        tiny = float(kind.smallest_subnormal if kind.dtype == jnp.float16 else kind.tiny)
        low, high = max(self.lower, -most), min(self.upper, most)
        if not self.closed:
            low = low + max(tiny, eps * abs(low)) if low == self.lower else low
            high = high - max(tiny, eps / 2 * abs(high)) if high == self.upper else high
        return low, high

    @property
    def tolerance(self) -> float:
        """How far from its level, in steps, a value may be: levels that are no integers round."""
        return 1 / 16 if self.kind == "interval" else 0.0

    def contains(self, y: Num[Array, "..."]) -> Bool[Array, "..."]:
        """Whether each value lies in the support; False for NaN."""
        (y,) = numerics.upcast(y)
        if self.kind == "circle":
            return jnp.isfinite(y)
        if self.step:
            index = (y - self.lower) / self.step
            room = self.tolerance
            last = (self.upper - self.lower) / self.step
            inside = (index >= -room) & (index <= last + room)
            inside &= jnp.abs(index - jnp.round(index)) <= room
        elif self.closed:
            inside = (y >= self.lower) & (y <= self.upper)
        else:
            inside = (y > self.lower) & (y < self.upper)
        for atom in self.atoms:
            inside |= y == atom
        return inside & jnp.isfinite(y)

    def before(self, y: Num[Array, "..."]) -> Num[Array, "..."]:
        """The last value whose distribution function is the limit at ``y`` from the left."""
        if self.step:
            index = jnp.ceil((y - self.lower) / self.step - self.tolerance) - 1
            return self.lower + self.step * index
        for atom in self.atoms:
            tiny = float(jnp.finfo(y.dtype).tiny)
            y = jnp.where(y == atom, atom - max(tiny, abs(atom) * float(jnp.finfo(y.dtype).eps)), y)
        return y


REAL = Support("real", closed_under="affine")
POSITIVE = Support("positive", lower=0.0, closed_under="scale")
CIRCLE = Support("circle", lower=-math.pi, upper=math.pi)
COUNTS = Support("integers", lower=0.0, step=1.0)
