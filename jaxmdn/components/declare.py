"""How a family declares itself: its parameters with their kinds, its constants, its name.

    @family
    class Gumbel(Univariate):
        loc: Array = real()
        scale: Array = positive()

makes a frozen dataclass of ``loc`` and ``scale``, registers it as a pytree and under the name
``"gumbel"``, and tells a head that it needs two numbers per component and output, one of them
positive.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any, TypeVar, dataclass_transform

import jax

from jaxmdn.components import pickling

ClassT = TypeVar("ClassT", bound=type)

#: Every declared family by its name; those of jaxmdn once ``jaxmdn.components`` has loaded them.
REGISTRY: dict[str, type[Any]] = {}


def parameter(
    kind: str | None = None,
    *,
    rank: int = 1,
    size: int = 1,
    fixable: bool = False,
    in_unit: bool = False,
) -> Any:
    """A field that holds an array ``[..., K, event axes]``.

    Args:
      kind: what a head must make of raw numbers; None for what only a head of its own can make.
      rank: how many trailing axes describe one event (``loc [..., K, D]``: 1).
      size: raw numbers per output.
      fixable: whether ``Family(name, parameter=value)`` may fix it instead of learning it.
      in_unit: whether it is in the target's unit, as locations and scales are: a head makes it as a
        multiple of the output's unit (``FactorizedHead.units``).
    """
    return dataclasses.field(
        metadata={
            "kind": kind,
            "rank": rank,
            "size": size,
            "fixable": fixable,
            "in_unit": in_unit,
        }
    )


def real(*, rank: int = 1, fixable: bool = False, in_unit: bool = False) -> Any:
    """A parameter that may be any real number."""
    return parameter("real", rank=rank, fixable=fixable, in_unit=in_unit)


def positive(*, rank: int = 1, fixable: bool = False, in_unit: bool = False) -> Any:
    """A positive parameter: a head's scale link and floor apply."""
    return parameter("positive", rank=rank, fixable=fixable, in_unit=in_unit)


def magnitude(*, rank: int = 1, fixable: bool = False) -> Any:
    """A positive parameter over orders of magnitude, such as a rate: a head makes its logarithm."""
    return parameter("magnitude", rank=rank, fixable=fixable)


def unit(*, rank: int = 1, fixable: bool = False) -> Any:
    """A parameter between 0 and 1, through a sigmoid."""
    return parameter("unit", rank=rank, fixable=fixable)


def simplex(size: int) -> Any:
    """Nonnegative numbers ``[..., K, D, size]`` that add up to one, through a softmax."""
    return parameter("simplex", rank=2, size=size)


def constant(default: Any) -> Any:
    """A static field, a Python number that is not learnt: bounds, for instance."""
    return dataclasses.field(default=default, metadata={"static": True})


def part(default: str) -> Any:
    """A field that holds another family, by default the one of this name."""
    return dataclasses.field(metadata={"part": default})


@dataclass_transform(
    kw_only_default=True,
    frozen_default=True,
    field_specifiers=(parameter, real, positive, magnitude, unit, simplex, constant, part),
)
def family(cls: Any = None, /, *, name: str | None = None) -> Any:
    """Make a class a component family: a frozen dataclass, a pytree, a name that heads know.

    ``name`` is the class's own in lower case with underscores if absent.
    """
    if cls is None:
        return lambda cls: family(cls, name=name)
    cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    metadata = {field.name: field.metadata for field in dataclasses.fields(cls)}
    cls.event_ranks = {key: meta["rank"] for key, meta in metadata.items() if "rank" in meta}
    cls.family_name = name or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()
    REGISTRY[cls.family_name] = cls
    return register(cls)


def register(cls: ClassT) -> ClassT:
    """Register a frozen dataclass as a pytree whose structure differs from every other class's.

    ``jax.tree_util.register_dataclass`` (JAX 0.10 to 0.12) makes structures that compare equal for
    any two classes with as many fields. Their hashes differ, so that caches keep them apart most of
    the time; where the hashes happen to share a bucket, a function compiled for one family is run
    for another, and the result is wrong without a word.
    """
    fields = dataclasses.fields(cls)
    static = tuple(field.name for field in fields if field.metadata.get("static"))
    names = tuple(field.name for field in fields if field.name not in static)
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in names)

    def flatten(instance: Any) -> tuple[tuple, tuple]:
        children = tuple(getattr(instance, name) for name in names)
        return children, tuple(getattr(instance, name) for name in static)

    def flatten_with_keys(instance: Any) -> tuple[tuple, tuple]:
        children, constants = flatten(instance)
        return tuple(zip(keys, children, strict=True)), constants

    def unflatten(constants: tuple, children: Iterable) -> Any:
        arrays = dict(zip(names, children, strict=True))
        return cls(**arrays, **dict(zip(static, constants, strict=True)))

    def reduce(instance: Any) -> tuple[Any, ...]:
        own = {field.name: getattr(instance, field.name) for field in fields}
        return pickling.build, (type(instance), pickling.pack(own))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    cls.__reduce__ = reduce  # type: ignore[method-assign,assignment]
    return cls
