"""Standardisation that remembers its log-determinant.

A network learns best when inputs and targets have mean zero and variance one; a density must be
reported in the target's own unit. ``y = shift + scale z`` gives
``log p_y(y) = log p_z(z) - sum(log scale)``.

Shift and scale are kept in float64 and applied on the host before values are cast to the device's
dtype: a time stamp of 1.7e9 seconds has no room for its seconds in float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import checks
from jaxmdn.components.declare import register
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
        wide = np.asarray(values, np.float64)
        rows = wide.reshape(-1, wide.shape[-1])
        share = np.ones(wide.shape[:-1]) if weights is None else np.asarray(weights, np.float64)
        share = np.broadcast_to(
            share.reshape(share.shape + (1,) * (wide.ndim - 1 - share.ndim)), wide.shape[:-1]
        ).ravel()
        shift = np.average(rows, axis=0, weights=share)
        scale = np.sqrt(np.average((rows - shift) ** 2, axis=0, weights=share))
        counted = rows[share > 0]
        constant = (counted == counted[0]).all(axis=0) | (scale == 0)
        shift, scale = np.where(constant, counted[0], shift), np.where(constant, 1.0, scale)
        if closure is not None:
            kinds = np.asarray(closure)
            size = np.sqrt(np.average(rows**2, axis=0, weights=share))
            scale = np.where(kinds == "scale", np.where(size > 0, size, 1.0), scale)
            shift = np.where(np.isin(kinds, ("affine", "positive_affine")), shift, 0.0)
            scale = np.where(kinds == "none", 1.0, scale)
        return cls(shift=shift, scale=scale)

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
        wide = np.asarray(values, np.float64)
        return jnp.asarray((wide - self.shift) / self.scale, dtype)

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


@dataclasses.dataclass(frozen=True)
class TreeStandardizer:
    """A :class:`Standardizer` for some leaves of a pytree, each by its path; others stay.

    Attributes:
      parts: from ``jax.tree_util.keystr`` of a leaf's path.
    """

    parts: Mapping[str, Standardizer]

    def __call__(self, tree: Any) -> Any:
        """Standardise the leaves that there is a map for."""

        def one(path: Any, leaf: Any) -> Any:
            part = self.parts.get(jax.tree_util.keystr(path))
            return leaf if part is None else part(leaf)

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
