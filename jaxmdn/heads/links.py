"""Links: the map from an unconstrained raw number to a constrained parameter, and its inverse.

A network may emit any real number; a standard deviation is positive, a correlation lies in
(-1, 1). A link is a frozen, hashable piece of configuration with three parts: ``link(raw)``,
``link.inverse(value)`` (which the data-driven initialisers use) and ``link.range``, the open
interval it maps onto. Floors and bounds are arguments of the link, never clips applied afterwards,
so the gradient never vanishes because of a hidden ``clip``.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import checks, numerics
from jaxmdn.special.softplus import softplus, softplus_and_slope
from jaxmdn.typing import Array, Float


def use_python_numbers(config: Any) -> None:
    """Turn NumPy scalars among a frozen dataclass's fields into Python numbers.

    NumPy's are strongly typed, so that they would widen the parameters they meet, and those that
    are not float64 have no JSON form.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, np.generic):
            object.__setattr__(config, field.name, value.item())


@dataclasses.dataclass(frozen=True)
class Link(abc.ABC):
    """Base of all links. Subclasses are elementwise and strictly increasing."""

    def __post_init__(self) -> None:
        use_python_numbers(self)

    @abc.abstractmethod
    def __call__(self, raw: Float[Array, "..."]) -> Float[Array, "..."]:
        """Map raw numbers to constrained ones; the dtype is kept."""

    def value_and_slope(self, raw: Float[Array, "..."]) -> tuple[Array, Array]:
        """Return ``link(raw)`` and its derivative, which the fused likelihoods multiply by."""
        return jax.jvp(self, (raw,), (jnp.ones_like(raw),))

    @abc.abstractmethod
    def inverse(self, value: Float[Array, "..."]) -> Float[Array, "..."]:
        """Map constrained numbers back; NaN or infinite outside :attr:`range`."""

    @property
    @abc.abstractmethod
    def range(self) -> tuple[float, float]:
        """The open interval of attainable values."""

    def within_reach(self, value: Float[Array, "..."], added: float) -> Float[Array, "..."]:
        """Values moved strictly inside what ``added + link(raw)`` attains."""
        lower, upper = (end + added for end in self.range)
        return jnp.clip(value, 1.01 * lower + 1e-6, 0.999 * upper)


@dataclasses.dataclass(frozen=True)
class Identity(Link):
    """``value = raw``."""

    def __call__(self, raw: Float[Array, "..."]) -> Float[Array, "..."]:
        return raw

    def inverse(self, value: Float[Array, "..."]) -> Float[Array, "..."]:
        return value

    @property
    def range(self) -> tuple[float, float]:
        return (-math.inf, math.inf)


@dataclasses.dataclass(frozen=True)
class Exp(Link):
    """``value = e^raw`` (Bishop 1994, eq. 24). Overflows float32 above raw = 88."""

    def __call__(self, raw: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.exp(raw)

    def value_and_slope(self, raw: Float[Array, "..."]) -> tuple[Array, Array]:
        value = jnp.exp(raw)
        return value, value

    def inverse(self, value: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.log(value)

    @property
    def range(self) -> tuple[float, float]:
        return (0.0, math.inf)


@dataclasses.dataclass(frozen=True)
class Softplus(Link):
    """``value = floor + knee log(1 + e^raw / knee)``: linear in the end, so it cannot overflow.

    ``e^raw`` where that is far below the knee, and of slope ``knee`` far above it.

    Args:
      floor: lower bound of the value, in the value's own unit. Default 0.
      knee: where the exponential turns into a line, in the value's own unit. Default 1.

    >>> import jax.numpy as jnp
    >>> float(Softplus(floor=0.5)(jnp.float32(-100.0)))
    0.5
    """

    floor: float = 0.0
    knee: float = 1.0

    def __post_init__(self) -> None:
        checks.require_number("Softplus", "floor", self.floor, lower=0.0)
        checks.require_number("Softplus", "knee", self.knee, lower=0.0, strict_lower=True)
        super().__post_init__()

    def __call__(self, raw: Float[Array, "..."]) -> Float[Array, "..."]:
        if self.knee == 1.0:
            return softplus(raw) + self.floor
        return self.knee * softplus(raw - math.log(self.knee)) + self.floor

    def value_and_slope(self, raw: Float[Array, "..."]) -> tuple[Array, Array]:
        value, slope = softplus_and_slope(raw - math.log(self.knee))
        return self.knee * value + self.floor, self.knee * slope

    def inverse(self, value: Float[Array, "..."]) -> Float[Array, "..."]:
        return math.log(self.knee) + numerics.inverse_softplus((value - self.floor) / self.knee)

    @property
    def range(self) -> tuple[float, float]:
        return (self.floor, math.inf)


@dataclasses.dataclass(frozen=True)
class DampedExp(Link):
    """``value = e^raw / sqrt(1 + reg e^(2 raw))``: exponential when small, at most ``reg**-0.5``.

    Computed in logs, ``log value = -log(e^(-2 raw) + reg) / 2``, so that neither end overflows or
    cancels.

    Args:
      reg: damping strength; the value saturates at ``reg**-0.5``. Default 1e-4 (a bound of 100).

    >>> import jax.numpy as jnp
    >>> float(DampedExp(reg=0.25)(jnp.float32(1e6)))
    2.0
    """

    reg: float = 1e-4

    def __post_init__(self) -> None:
        checks.require_number("DampedExp", "reg", self.reg, lower=0.0, strict_lower=True)
        super().__post_init__()

    def __call__(self, raw: Float[Array, "..."]) -> Float[Array, "..."]:
        # logaddexp and not min and abs: those have no second derivative where their arms meet.
        log_reg = jnp.full_like(raw, math.log(self.reg))
        return jnp.exp(-0.5 * jnp.logaddexp(-2.0 * raw, log_reg))

    def inverse(self, value: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.log(value) - 0.5 * jnp.log1p(-self.reg * value * value)

    @property
    def range(self) -> tuple[float, float]:
        return (0.0, self.reg**-0.5)


@dataclasses.dataclass(frozen=True)
class Bounded(Link):
    """``value = lower + (upper - lower) sigmoid(raw)``.

    Args:
      lower: lower end of the open interval.
      upper: upper end; must exceed ``lower``.
    """

    lower: float
    upper: float

    def __post_init__(self) -> None:
        checks.require_number("Bounded", "lower", self.lower, strict_lower=True)
        checks.require_number("Bounded", "upper", self.upper, lower=self.lower, strict_lower=True)
        super().__post_init__()

    def __call__(self, raw: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.lower + (self.upper - self.lower) * jax.nn.sigmoid(raw)

    def inverse(self, value: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.log(value - self.lower) - jnp.log(self.upper - value)

    @property
    def range(self) -> tuple[float, float]:
        return (self.lower, self.upper)


@dataclasses.dataclass(frozen=True)
class Sigmoid(Link):
    """``value = 1 / (1 + e^-raw)``, in (0, 1)."""

    def __call__(self, raw: Float[Array, "..."]) -> Float[Array, "..."]:
        return jax.nn.sigmoid(raw)

    def inverse(self, value: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.log(value) - jnp.log1p(-value)

    @property
    def range(self) -> tuple[float, float]:
        return (0.0, 1.0)


@jax.custom_jvp
def _tanh(raw: Array) -> Array:
    return jnp.tanh(raw)


# 1 / cosh(raw)^2: as 1 - tanh^2 it would cancel.
_tanh.defjvps(lambda d, _, raw: 4 * jax.nn.sigmoid(2 * raw) * jax.nn.sigmoid(-2 * raw) * d)


@dataclasses.dataclass(frozen=True)
class Tanh(Link):
    """``value = tanh(raw)``, in (-1, 1)."""

    def __call__(self, raw: Float[Array, "..."]) -> Float[Array, "..."]:
        return _tanh(raw)

    def inverse(self, value: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.arctanh(value)

    @property
    def range(self) -> tuple[float, float]:
        return (-1.0, 1.0)


LINKS: dict[str, type[Link]] = {
    "identity": Identity,
    "exp": Exp,
    "softplus": Softplus,
    "damped_exp": DampedExp,
    "bounded": Bounded,
    "sigmoid": Sigmoid,
    "tanh": Tanh,
}


def resolve(link: Link | str) -> Link:
    """Return a link itself, or the link of that name with its default arguments.

    >>> resolve("softplus")
    Softplus(floor=0.0, knee=1.0)
    """
    if isinstance(link, Link):
        return link
    checks.require_option("links.resolve", "link", link, LINKS)
    try:
        return LINKS[link]()
    except TypeError:
        raise ValueError(
            f"links.resolve: the link {link!r} has arguments without defaults; pass an instance, "
            f"for example jaxmdn.heads.links.{LINKS[link].__name__}(...)."
        ) from None


def require_positive(function: str, link: Link, floor: float) -> None:
    """Raise ``ValueError`` unless ``floor + link(raw)`` is positive whatever ``raw`` is."""
    lowest = link.range[0] + floor
    if lowest < 0.0:
        raise ValueError(
            f"{function}: scale_link {link!r} reaches {lowest:g}, but a scale must be positive; "
            f"use softplus, exp, damped_exp, or bounded with lower >= 0."
        )


def to_config(link: Link) -> dict[str, Any]:
    """Return a JSON-ready description of a link."""
    for name, kind in LINKS.items():
        if kind is type(link):
            return {"name": name, **dataclasses.asdict(link)}
    raise TypeError(
        f"links.to_config: {type(link).__name__} has no name to be saved under; add it to "
        f"jaxmdn.heads.links.LINKS."
    )


def from_config(config: dict[str, Any]) -> Link:
    """Rebuild a link from :func:`to_config`'s description."""
    arguments = dict(config)
    name = arguments.pop("name")
    checks.require_option("links.from_config", "name", name, LINKS)
    return LINKS[name](**arguments)
