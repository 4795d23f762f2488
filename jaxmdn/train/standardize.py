"""Standardisation that remembers its log-determinant.

A network learns best when inputs and targets have mean zero and variance one; a density must be
reported in the target's own unit. ``y = shift + scale z`` gives
``log p_y(y) = log p_z(z) - sum(log scale)``.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn.typing import Array, ArrayLike, Float, Parameter


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Standardizer:
    """An elementwise affine map, ``standardised = (value - shift) / scale``.

    Attributes:
      shift: ``[D]``, in the value's unit.
      scale: ``[D]``, positive, in the value's unit.
    """

    shift: Parameter
    scale: Parameter

    @classmethod
    def identity(cls, dim: int) -> Standardizer:
        """The map that changes nothing."""
        return cls(shift=jnp.zeros(dim), scale=jnp.ones(dim))

    @classmethod
    def fit(
        cls, values: Float[ArrayLike, "... D"], weights: Float[ArrayLike, "..."] | None = None
    ) -> Standardizer:
        """Mean and standard deviation of each column over all leading axes.

        Computed in float64 on the host; a column whose spread is lost in rounding (a constant)
        keeps ``scale = 1``.
        """
        values = jnp.asarray(values)
        rows = np.asarray(values, np.float64).reshape(-1, values.shape[-1])
        share = None if weights is None else np.asarray(weights, np.float64).reshape(-1)
        shift = np.average(rows, axis=0, weights=share)
        scale = np.sqrt(np.average((rows - shift) ** 2, axis=0, weights=share))
        epsilon = jnp.finfo(values.dtype).eps
        constant = scale <= 10 * epsilon * np.abs(shift)
        return cls(
            shift=jnp.asarray(shift, values.dtype),
            scale=jnp.asarray(np.where(constant, 1.0, scale), values.dtype),
        )

    def __call__(self, values: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Standardise."""
        return (values - self.shift) / self.scale

    def inverse(self, values: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Return to the original unit."""
        return self.shift + self.scale * values

    @property
    def log_det(self) -> Float[Array, ""]:
        """``sum(log scale)``: added to a standardised NLL, it gives the NLL in the own unit."""
        return jnp.sum(jnp.log(self.scale))
