"""A family as a head sees it: which numbers it needs, and how they become parameters.

A family says itself what it learns and of which kind (:mod:`jaxmdn.components.declare`); the kind
decides the map from raw numbers, so that the supports hold whatever the network emits.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import checks, components, numerics
from jaxmdn.components.declare import REGISTRY
from jaxmdn.typing import Array, Float


class Kind(NamedTuple):
    """How raw numbers become a parameter, and back.

    ``build(raw, head)`` and ``inverse(value, head)``; the head gives its links and floor.
    ``within_reach(value, head)`` moves values to where there are raw numbers that make them.
    """

    build: Callable[[Array, Any], Array]
    inverse: Callable[[Array, Any], Array]
    within_reach: Callable[[Array, Any], Array] = lambda value, head: value


def _simplex_inverse(value: Array, head: Any) -> Array:
    return numerics.log_normalize(jnp.log(value))


def _above_floor(link_of: Callable[[Any], Any]) -> Kind:
    """``min_scale + link(raw)``."""
    return Kind(
        lambda raw, head: head.min_scale + link_of(head)(raw),
        lambda value, head: link_of(head).inverse(value - head.min_scale),
        lambda value, head: link_of(head).within_reach(value, head.min_scale),
    )


KINDS = {
    "real": Kind(lambda raw, head: raw, lambda value, head: value),
    "positive": _above_floor(lambda head: head.link),
    "magnitude": _above_floor(lambda head: head.magnitude_link),
    "unit": Kind(
        lambda raw, head: jax.nn.sigmoid(raw),
        lambda value, head: jnp.log(value) - jnp.log1p(-value),
    ),
    "simplex": Kind(lambda raw, head: jax.nn.softmax(raw, axis=-1), _simplex_inverse),
}


@functools.cache
def _load() -> None:
    """Import every family of jaxmdn's own, so that its name is known."""
    for name in dir(components):
        getattr(components, name)


def family_class(name: str) -> type[Any]:
    """The declared family of this name."""
    if name not in REGISTRY:
        _load()
    return REGISTRY[name]


def family_names() -> tuple[str, ...]:
    """Names of all declared families that :class:`FactorizedHead` takes, jaxmdn's own included.

    >>> "gamma" in family_names()
    True
    """
    _load()
    return tuple(sorted(name for name, cls in REGISTRY.items() if _learnt(cls) is not None))


def _fields(cls: type[Any]) -> dict[str, Any]:
    return {field.name: field for field in dataclasses.fields(cls)}


def _learnt(cls: type[Any]) -> dict[str, Any] | None:
    """The declared parameters' metadata; None if some are not for a head to make."""
    found = {name: f.metadata for name, f in _fields(cls).items() if "kind" in f.metadata}
    return None if any(meta["kind"] is None for meta in found.values()) else found


@dataclasses.dataclass(frozen=True, init=False)
class Family:
    """A component family with its constants: what ``families=`` takes beside names and classes.

    >>> from jaxmdn.heads import Family
    >>> Family("student_t", df=4.0)
    Family('student_t', df=4.0)

    Args:
      family: a name (``jaxmdn.heads.families.family_names()``) or a class declared with
        ``@jaxmdn.components.family``.
      **constants: bounds (``lower``, ``upper``), ``num_bins``, the ``base`` beside a share of zeros
        (a name, a class or a ``Family``), or a parameter that is fixed instead of learnt (``df``,
        ``asymmetry``, ``concentration``); see the component's class.

    Raises:
      ValueError: for an unknown name or constant. TypeError: for what is no family.
    """

    name: str
    constants: tuple[tuple[str, Any], ...]

    def __init__(self, family: Any, **constants: Any) -> None:
        name = _name(family)
        cls = family_class(name)
        fields, where = _fields(cls), f"Family({name!r})"
        if _learnt(cls) is None:
            raise ValueError(
                f"Family: {name!r} declares parameters without a kind, which only a head of its "
                f"own can make (NormalHead, CategoricalHead); it cannot stand in FactorizedHead."
            )
        fixable = [key for key, f in fields.items() if f.metadata.get("fixable")]
        static = {key: f.default for key, f in fields.items() if f.metadata.get("static")}
        parts = {key: f.metadata["part"] for key, f in fields.items() if "part" in f.metadata}
        for key in constants:
            known = (*static, *parts, *fixable)
            if not known:
                raise ValueError(f"Family: {name!r} takes no constants, got {key!r}.")
            checks.require_option(where, "constants", key, known)
        given = {k: v.item() if isinstance(v, np.generic) else v for k, v in constants.items()}
        merged = {**static, **parts, **given}
        for key in parts:
            merged[key] = resolve(where, merged[key])
            if merged[key].nested or "logit" in merged[key].parameters:
                raise ValueError(
                    f"{where}: {key} must be a family of counts or positive numbers, such as "
                    f"'poisson' or 'gamma'; got {merged[key]!r}."
                )
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "constants", tuple(merged.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        """By the class, so that the process that loads it imports a family of your own, too."""
        return _rebuild, (self.component, dict(self.constants))

    def __repr__(self) -> str:
        arguments = [repr(self.name), *(f"{key}={value!r}" for key, value in self.constants)]
        return f"Family({', '.join(arguments)})"

    @property
    def component(self) -> type[Any]:
        """The component class."""
        return family_class(self.name)

    @property
    def event_size(self) -> int:
        """How many outputs one family describes: 1, but for families of several dimensions."""
        return getattr(self.component, "event_size", 1)

    @property
    def joint(self) -> bool:
        """Whether the family describes several outputs that depend on each other."""
        return not issubclass(self.component, components.Univariate)

    @property
    def nested(self) -> dict[str, Family]:
        """The families inside this one, such as the ``base`` beside a share of zeros."""
        return {key: value for key, value in self.constants if isinstance(value, Family)}

    @property
    def parameters(self) -> dict[str, Any]:
        """What the network emits: names to metadata (``kind``, ``rank``, ``size``)."""
        fixed = dict(self.constants)
        own = {k: meta for k, meta in (_learnt(self.component) or {}).items() if k not in fixed}
        inner = {k: meta for part in self.nested.values() for k, meta in part.parameters.items()}
        return {**inner, **own}

    def event_shape(self, parameter: str, outputs: int) -> tuple[int, ...]:
        """The event axes of a parameter of a component that describes so many outputs."""
        meta = self.parameters[parameter]
        return (outputs, meta["size"])[: meta["rank"]]

    def build(self, values: dict[str, Array], lead: tuple[int, ...]) -> Any:
        """The component density with learnt parameters ``values``, of batch shape ``[*lead, K]``.

        Constants carry the leading axes too, so that densities can be stacked and mapped over.
        """
        fields, dtype = _fields(self.component), next(iter(values.values())).dtype
        constants = {}
        for key, value in self.constants:
            metadata = fields[key].metadata
            if isinstance(value, Family):
                inner = {name: values[name] for name in value.parameters}
                constants[key] = value.build(inner, lead)
            elif metadata.get("static"):
                constants[key] = value
            else:
                constants[key] = jnp.full((*lead, 1, *(1,) * metadata["rank"]), value, dtype)
        own = {name: value for name, value in values.items() if name in fields}
        return self.component(**own, **constants)

    def values(self, member: Any) -> dict[str, Array]:
        """Learnt parameters of a component density: what :meth:`build` takes."""
        inner = {
            name: value
            for key, part in self.nested.items()
            for name, value in part.values(getattr(member, key)).items()
        }
        return {**inner, **{n: getattr(member, n) for n in self.parameters if n not in inner}}

    def from_moments(
        self, mean: Float[Array, "K D"], variance: Float[Array, "K D"]
    ) -> dict[str, Float[Array, "K D"]] | None:
        """Learnt parameters of the member with these moments; None if the family has no rule."""
        parts = self.nested
        inner = next(iter(parts.values())) if parts else self
        constants = {
            key: value
            for key, value in inner.constants
            if not (key == "df" and value <= 2)  # no variance to match: as for the default
        }
        constants.update({key: part.component for key, part in parts.items()})
        try:
            member = self.component.from_moments(mean, variance, **constants)
        except AttributeError:
            return None
        return self.values(member)


def _rebuild(component: type[Any], constants: dict[str, Any]) -> Family:
    return Family(component, **constants)


def _name(family: Any) -> str:
    """The name of what stands for a family."""
    if isinstance(family, type) and hasattr(family, "family_name"):
        if REGISTRY.get(family.family_name) is not family:
            REGISTRY[family.family_name] = family  # defined anew, in a notebook's cell
        return family.family_name
    if not isinstance(family, str):
        kind = family.__name__ if isinstance(family, type) else type(family).__name__
        raise TypeError(
            f"Family: expected a name or a class declared with @jaxmdn.components.family, got "
            f"{kind}; for example 'gamma' or Family('student_t', df=4.0)."
        )
    if family not in REGISTRY:
        checks.require_option("Family", "name", family, family_names())
    return family


def resolve(function: str, family: Any) -> Family:
    """Turn a name or a class into a :class:`Family`, or raise ``TypeError``."""
    if isinstance(family, Family):
        return family
    if not isinstance(family, (str, type)):
        raise TypeError(
            f"{function}: families must be names, declared classes or jaxmdn.heads.Family, got "
            f"{type(family).__name__}; for example ('normal', Family('student_t', df=4.0))."
        )
    if isinstance(family, str):
        checks.require_option(function, "families", family, family_names())
    return Family(family)
