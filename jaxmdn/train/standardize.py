"""Standardisation that remembers its log-determinant.

A network learns best when inputs and targets have mean zero and variance one; a density must be
reported in the target's own unit. ``y = shift + scale z`` gives
``log p_y(y) = log p_z(z) - sum(log scale)``.

Shift and scale are kept in float64 and applied on the host before values are cast to the device's
dtype: a time stamp of 1.7e9 seconds has no room for its seconds in float32.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import checks
from jaxmdn.components.declare import register
from jaxmdn.components.support import Support
from jaxmdn.typing import Array, Float


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class Standardizer:
    """An elementwise affine map, ``standardised = (value - shift) / scale``.

    Attributes:
      shift: ``[D]``, in the value's unit (NumPy, float64).
      scale: ``[D]``, positive, in the value's unit (NumPy, float64).
    """

    shift: Any
    scale: Any

    @classmethod
    def fit(
        cls, values: Any, weights: Any = None, *, closure: Sequence[str] | None = None
    ) -> Standardizer:
        """Mean and standard deviation of each column of ``values [..., D]``, all rows pooled.

        Weights have the leading axes of ``values``, or the first of them; rows of weight zero do
        not count. A constant column keeps ``scale = 1``. ``closure`` says what each column's
        density allows (``Head.closure``): ``"affine"``, ``"scale"`` (the root mean square, no
        shift) or ``"none"``.
        """
        return Moments.of(values, weights).standardizer(closure)

    @classmethod
    def from_batches(
        cls, batches: Iterable[Any], *, closure: Sequence[str] | None = None
    ) -> Standardizer:
        """The same in one pass over batches of ``values [..., D]``, or ``(values, weights)``.

        >>> import numpy as np
        >>> batches = (np.full((2, 1), float(i)) for i in range(3))
        >>> Standardizer.from_batches(batches).scale.round(4)
        array([0.8165])
        """
        parts = (Moments.of(*b) if isinstance(b, tuple) else Moments.of(b) for b in batches)
        return functools.reduce(Moments.merge, parts).standardizer(closure)

    def __call__(self, values: Any) -> Float[Array, "... D"]:
        """Standardise ``values [..., D]``: in float64 on the host, unless they are being traced."""
        checks.require_last_axis(
            "Standardizer", "values", values, len(self.shift), "columns it was fitted on"
        )
        dtype = jnp.result_type(float)
        if isinstance(values, jax.Array) and jnp.issubdtype(values.dtype, jnp.floating):
            dtype = values.dtype
        if isinstance(values, jax.core.Tracer):
            shift, scale = (jnp.asarray(part, dtype) for part in (self.shift, self.scale))
            return (values.astype(dtype) - shift) / scale
        return jax.device_put(self.on_host(values, dtype))  # `asarray` compiles for each shape

    def on_host(self, values: Any, dtype: Any) -> np.ndarray:
        """The same in NumPy, computed in float64 and rounded to a dtype."""
        return ((np.asarray(values, np.float64) - self.shift) / self.scale).astype(dtype)

    def inverse(self, values: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Return to the original unit."""
        return (
            jnp.asarray(self.shift, values.dtype) + jnp.asarray(self.scale, values.dtype) * values
        )

    def to_config(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {"shift": self.shift.tolist(), "scale": self.scale.tolist()}

    @property
    def log_det(self) -> float:
        """``sum(log scale)``: added to a standardised NLL, it gives the NLL in the own unit."""
        return float(np.sum(np.log(self.scale)))

    def log_det_at(self, support: Sequence[Support], y: Any) -> Any:
        """The same for each row of ``y [..., D]``, in the own unit: a probability has no unit.

        So an output that lies on an atom of its support (a hurdle's zero) does not count.
        """
        if not any(own.atoms for own in support):
            return self.log_det
        total: Any = 0.0
        for d, (own, scale) in enumerate(zip(support, self.scale, strict=True)):
            some: Any = 1.0
            for atom in own.atoms:
                some = some * (y[..., d] != atom)
            total = total + float(np.log(scale)) * some
        return total


@dataclasses.dataclass(frozen=True)
class Moments:
    """Weighted moments of columns, in float64; those of two parts merge into those of the whole.

    Attributes:
      mass: sum of the weights.
      mean: ``[D]``.
      variance: ``[D]``, around the mean.
      lower, upper: ``[D]``, smallest and largest value that counts.

    References:
      Chan, Golub and LeVeque (1983), Algorithms for computing the sample variance, eq. 2.1; of one
      row at a time it is Welford's.
    """

    mass: float
    mean: np.ndarray
    variance: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    @classmethod
    def of(cls, values: Any, weights: Any = None) -> Moments:
        """Moments of ``values [..., D]``; weights as in :meth:`Standardizer.fit`."""
        wide = np.asarray(values, np.float64)
        rows = wide.reshape(-1, wide.shape[-1])
        share = np.ones(wide.shape[:-1]) if weights is None else np.asarray(weights, np.float64)
        share = np.broadcast_to(
            share.reshape(share.shape + (1,) * (wide.ndim - 1 - share.ndim)), wide.shape[:-1]
        ).ravel()
        rows, share = rows[share > 0], share[share > 0]
        if not len(rows):
            nothing = np.zeros(wide.shape[-1])
            return cls(0.0, nothing, nothing, nothing + np.inf, nothing - np.inf)
        mean = np.average(rows, axis=0, weights=share)
        variance = np.average((rows - mean) ** 2, axis=0, weights=share)
        return cls(float(share.sum()), mean, variance, rows.min(axis=0), rows.max(axis=0))

    def merge(self, other: Moments) -> Moments:
        """Moments of both parts together."""
        mass = self.mass + other.mass
        own, new = (part / mass if mass else 0.0 for part in (self.mass, other.mass))
        gap = other.mean - self.mean
        return Moments(
            mass,
            self.mean + new * gap,
            own * self.variance + new * other.variance + own * new * gap**2,
            np.minimum(self.lower, other.lower),
            np.maximum(self.upper, other.upper),
        )

    def standardizer(self, closure: Sequence[str] | None = None) -> Standardizer:
        """The map to mean 0 and variance 1, as far as ``closure`` allows."""
        scale = np.sqrt(self.variance)
        constant = (self.lower == self.upper) | (scale == 0)
        shift, scale = np.where(constant, self.lower, self.mean), np.where(constant, 1.0, scale)
        if closure is not None:
            kinds = np.asarray(closure)
            size = np.sqrt(self.variance + self.mean**2)  # root mean square
            scale = np.where(kinds == "scale", np.where(size > 0, size, 1.0), scale)
            shift = np.where(np.isin(kinds, ("affine", "positive_affine")), shift, 0.0)
            scale = np.where(kinds == "none", 1.0, scale)
        return Standardizer(shift=shift, scale=scale)


@dataclasses.dataclass(frozen=True)
class TreeStandardizer:
    """A :class:`Standardizer` for some leaves of a pytree, each by its path; others stay.

    Attributes:
      parts: from ``jax.tree_util.keystr`` of a leaf's path.
    """

    parts: Mapping[str, Standardizer]

    def __call__(self, tree: Any) -> Any:
        """Standardise the leaves that there is a map for."""
        return self._map(tree, lambda part, leaf: part(leaf))

    def on_host(self, tree: Any, dtype: Any) -> Any:
        """The same in NumPy, as :meth:`Standardizer.on_host`."""
        return self._map(tree, lambda part, leaf: part.on_host(leaf, dtype))

    def _map(self, tree: Any, function: Callable[[Standardizer, Any], Any]) -> Any:
        def one(path: Any, leaf: Any) -> Any:
            part = self.parts.get(jax.tree_util.keystr(path))
            return leaf if part is None else function(part, leaf)

        return jax.tree_util.tree_map_with_path(one, tree)

    def to_config(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {"leaves": {path: part.to_config() for path, part in self.parts.items()}}


def from_config(config: dict[str, Any] | None) -> Any:
    """The map that ``to_config`` described; None stays."""
    if config is None:
        return None
    if "leaves" in config:
        parts = {path: from_config(part) for path, part in config["leaves"].items()}
        return TreeStandardizer(parts)
    return Standardizer(**{name: np.asarray(value) for name, value in config.items()})


@jax.jit
def to_unit(density: Any, y_map: Standardizer) -> Any:
    """The density of standardised targets as one of targets in their own unit."""
    shift, scale = (jnp.asarray(part, density.dtype) for part in (y_map.shift, y_map.scale))
    return density if set(density.closure) == {"none"} else density.affine(shift, scale)


def unresolved(values: Any) -> np.ndarray:
    """Columns of ``values [..., D]`` whose spread JAX's default float does not resolve at the mean.

    One rounding of the mean is then more than a thousandth of a standard deviation: a density in
    the own unit is too coarse to evaluate, though a standardised one is not.
    """
    wide = np.asarray(values, np.float64).reshape(-1, np.shape(values)[-1])
    rounding = np.abs(wide.mean(axis=0)) * float(jnp.finfo(jnp.result_type(float)).eps)
    spread = wide.std(axis=0)
    return np.flatnonzero((spread > 0) & (rounding > 1e-3 * spread))
