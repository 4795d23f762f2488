"""What every head is: static configuration plus a pure function from raw outputs to a density.

A head holds no arrays. It is hashable (a static argument of ``jit``), comparable, and round-trips
through JSON, so that a checkpoint can carry it.
"""

from __future__ import annotations

import abc
import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import checks, meshes
from jaxmdn.components.base import Density
from jaxmdn.components.declare import REGISTRY
from jaxmdn.components.support import Support
from jaxmdn.heads import links
from jaxmdn.heads.families import Family
from jaxmdn.mixture import Mixture, check_target
from jaxmdn.typing import Array, ArrayLike, Bool, Float, Num


class Head(abc.ABC):
    """Base of all heads. Subclasses are frozen dataclasses of static fields.

    Subclasses write :meth:`build` and :meth:`inverse`; users call the head itself.
    """

    registry: ClassVar[dict[str, type[Head]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Head.registry[cls.__name__] = cls

    @property
    @abc.abstractmethod
    def num_outputs(self) -> int:
        """P, the number of raw network outputs the head consumes per example."""

    @property
    @abc.abstractmethod
    def event_dim(self) -> int:
        """D, the size of the last axis of a target."""

    @property
    def density_shape(self) -> Any:
        """The density of one row with shapes in place of arrays: what is static about it."""
        return jax.eval_shape(self.build, jax.ShapeDtypeStruct((self.num_outputs,), jnp.float32))

    @property
    def real_valued(self) -> bool:
        """Whether some output is a real number, rather than all of them integers."""
        return not self.density_shape.discrete

    @property
    def support(self) -> tuple[Support, ...]:
        """Where each output may lie, and how it may be standardised."""
        return self.density_shape.support

    @property
    def closure(self) -> tuple[str, ...]:
        """The maps of each output that stay in its family (``Support.closed_under``)."""
        return self.density_shape.closure

    def in_support(self, y: Num[ArrayLike, "... D"]) -> Bool[Array, "... D"]:
        """Whether each output's density may be positive at ``y``; False for NaN."""
        return _in_support(self, y if hasattr(y, "dtype") else np.asarray(y))

    @abc.abstractmethod
    def build(self, raw: Float[Array, "... P"]) -> Density:
        """Map raw outputs to a density (unchecked, traceable)."""

    @abc.abstractmethod
    def inverse(self, density: Any) -> Float[Array, "... P"]:
        """Return raw outputs that the head maps to ``density``.

        The weights are recovered up to what softmax cannot see (a constant added to the logits).
        Parameters outside the head's reach, such as a scale at or below ``min_scale``, give
        ``-inf`` or NaN.
        """

    def __call__(self, raw: Float[ArrayLike, "... P"]) -> Any:
        """Map raw outputs ``[..., P]`` to a density of batch shape ``[...]``.

        Raises:
          ValueError: if the last axis is not ``num_outputs`` wide.
          TypeError: if ``raw`` is not a floating-point array.
        """
        self.check_raw(type(self).__name__, raw)
        density = _build(self, raw)
        if isinstance(density, Mixture) and isinstance(raw, jax.core.Tracer):
            object.__setattr__(density, "origin", (self, raw))
        return density

    def log_prob(self, raw: Float[Array, "... P"], target: Any) -> Float[Array, "..."]:
        """Log-density of a target under ``head(raw)``; heads may accept structured targets."""
        density = self.build(raw)
        check_target(type(self).__name__, density, target)
        return density.log_prob(target)

    def check_raw(self, function: str, raw: Any) -> None:
        """Raise unless ``raw`` is a floating-point array ``[..., num_outputs]``."""
        checks.require_floating(function, "raw", raw)
        checks.require_last_axis(function, "raw", raw, self.num_outputs, f"raw outputs of {self!r}")


@partial(meshes.jit, static_argnums=0)
def _build(head: Head, raw: Num[Array, "... P"]) -> Density:
    return head.build(raw)


@partial(meshes.jit, static_argnums=0)
def _in_support(head: Head, y: Num[Array, "... D"]) -> Bool[Array, "... D"]:
    return head.density_shape.in_support(y)


def to_config(head: Head) -> dict[str, Any]:
    """Return a JSON-ready description of a head.

    >>> from jaxmdn.heads import NormalHead
    >>> from_config(to_config(NormalHead(3, 2))) == NormalHead(3, 2)
    True
    """
    config = {field.name: _encode(getattr(head, field.name)) for field in dataclasses.fields(head)}  # type: ignore[arg-type]
    return {"type": type(head).__name__, **_origin(type(head)), **config}


def from_config(config: dict[str, Any]) -> Head:
    """Rebuild a head from :func:`to_config`'s description."""
    arguments = {name: _decode(value) for name, value in config.items()}
    kind, module = arguments.pop("type"), arguments.pop("module", None)
    _require_known("head", kind, module, Head.registry)
    checks.require_option("heads.from_config", "type", kind, Head.registry)
    return Head.registry[kind](**arguments)


def _origin(cls: type[Any]) -> dict[str, str]:
    """Where a class that is not jaxmdn's own was defined."""
    return {} if cls.__module__.startswith("jaxmdn.") else {"module": cls.__module__}


def _require_known(what: str, name: str, module: str | None, known: Any) -> None:
    if module is not None and name not in known:
        raise ValueError(
            f"heads.from_config: the {what} {name!r} is not known here; it was defined in "
            f"{module!r}: import that module first."
        )


def _encode(value: Any) -> Any:
    """What JSON can hold of a head's field; each kind of object under a key of its own."""
    if isinstance(value, Head):
        return {"head": to_config(value)}
    if isinstance(value, links.Link):
        return {"link": links.to_config(value)}
    if isinstance(value, Family):
        own = _origin(value.component)
        constants = [list(map(_encode, pair)) for pair in value.constants]
        return {"family": value.name, "constants": constants, **own}
    return list(map(_encode, value)) if isinstance(value, tuple) else value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_decode, value))
    if not isinstance(value, dict):
        return value
    if "family" in value:
        _require_known("family", value["family"], value.get("module"), REGISTRY)
        return Family(value["family"], **dict(map(_decode, value["constants"])))
    return from_config(value["head"]) if "head" in value else links.from_config(value["link"])
