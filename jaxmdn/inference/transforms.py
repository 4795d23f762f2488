"""Densities made from a density: of some dimensions, of the others once some are known, moved."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmdn import checks, meshes, numerics
from jaxmdn.components.base import Density
from jaxmdn.inference.algebra import require_normals, transform
from jaxmdn.mixture import Mixture
from jaxmdn.typing import Array, ArrayLike, Float, Num


def marginal(density: Any, dims: Sequence[int]) -> Any:
    """Density of some of the dimensions, ``p(y_dims)``, in the order given.

    Args:
      density: a mixture (or a single component family) of batch shape ``[...]`` over D dimensions.
      dims: indices in ``0 .. D - 1``, each at most once (static).

    Returns:
      The same family over ``len(dims)`` dimensions, exact: nothing is approximated.

    Raises:
      ValueError: if ``dims`` is empty, out of range or repeated.
      TypeError: for a density whose dimensions have no marginals of their own (categorical).

    >>> import jax.numpy as jnp, jaxmdn
    >>> mixture = jaxmdn.NormalHead(4, 3, covariance="full")(jnp.zeros((5, 40)))
    >>> pair = jaxmdn.marginal(mixture, (2, 0))
    >>> pair.event_dim, pair.batch_shape
    (2, (5,))
    """
    _require_density("marginal", density)
    return _marginal(density, _check_dims("marginal", dims, density.event_dim))


def condition(density: Any, dims: Sequence[int], values: Float[Array, "... G"]) -> Any:
    """Density of the other dimensions once some are known, ``p(y_rest | y_dims = values)``.

    Every component is conditioned, and weighted by how well it explains the values:
    ``w_k p_k(values)``. The logits of the result are these log-numbers, so that their logsumexp is
    ``log p(y_dims = values)``.

    Args:
      density: a mixture of batch shape ``[...]`` over D dimensions.
      dims: the known dimensions, in any order, each at most once, not all of them (static).
      values: ``[..., len(dims)]``, in the order of ``dims``; leading axes broadcast.

    Returns:
      The same family over the other dimensions, in their original order.

    Raises:
      ValueError: as :func:`marginal`, if ``dims`` are all dimensions, or on a wrong shape.
      TypeError: for a density that cannot be conditioned.

    Limits: values that no component reaches (all densities underflow) give a density of NaN.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.FullNormal.from_covariance(
    ...     jnp.zeros((1, 2)), jnp.array([[[1.0, 0.5], [0.5, 1.0]]])
    ... )
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    >>> rest = jaxmdn.condition(mixture, (1,), jnp.array([2.0]))
    >>> round(float(jaxmdn.mean(rest)[0]), 4), round(float(jaxmdn.variance(rest)[0]), 4)
    (1.0, 0.75)

    References:
      Bishop (2006), Pattern Recognition and Machine Learning, eq. 2.81-2.82 (one component); for
      the low-rank form see :mod:`jaxmdn.components.low_rank_normal`.
    """
    _require_density("condition", density)
    known = _check_dims("condition", dims, density.event_dim)
    if len(known) == density.event_dim:
        raise ValueError(
            f"condition: dims {list(known)} are all dimensions, so that nothing is left; use "
            f"log_prob for the density at a point."
        )
    checks.require_floating("condition", "values", values)
    checks.require_last_axis("condition", "values", values, len(known), "one value per known dim")
    checks.require_broadcastable("condition", density=density.batch_shape, values=values.shape[:-1])
    return _condition(density, known, values)


def affine(
    density: Any,
    shift: Num[ArrayLike, "..."],
    matrix_or_scale: Num[ArrayLike, "..."],
) -> Any:
    """Density of ``shift + A y``, or of ``shift + scale * y`` elementwise.

    ``log p_z(shift + A y) = log p_y(y) - log |det A|`` for square A; with fewer rows than columns
    it is the density of linear combinations, as a marginal is.

    Args:
      density: a density of batch shape ``[...]`` over D dimensions.
      shift: in the new unit: a number or ``[E]``; with a matrix also ``[..., E]``, one for each
        mixture.
      matrix_or_scale: of rank 0 or 1 (a number, ``[D]``) the factor of each dimension, which may be
        negative but not zero: location-scale families keep their form, those on the positive
        numbers take a positive scale and no shift. Of rank 2 or more a matrix ``A [..., E, D]``,
        ``E <= D``, of full rank.

    Returns:
      With a scale the same family; with a matrix a mixture of
      :class:`~jaxmdn.components.FullNormal` over E dimensions (a class-conditional one flattened).

    Raises:
      ValueError: on a wrong shape, more rows than columns, a shift that the family does not take,
        or where Python numbers or NumPy arrays hold a zero scale or a matrix that is singular in
        their precision.
      TypeError: for a density without a unit (categorical), if a matrix meets components that are
        not normal, or an argument is not real.

    Limits: a zero scale or a singular matrix among JAX arrays gives NaN (or, where rounding hides
    that it is singular, a density without meaning). Differentiable in everything.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.array([[1.0, 2.0]]), scale=jnp.ones((1, 2)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    >>> difference = jaxmdn.affine(mixture, 0.0, jnp.array([[1.0, -1.0]]))
    >>> float(jaxmdn.mean(difference)[0]), round(float(jaxmdn.variance(difference)[0]), 4)
    (-1.0, 2.0)
    """
    _require_density("affine", density)
    known = isinstance(matrix_or_scale, (int, float, np.ndarray, np.number))
    factor = jnp.asarray(matrix_or_scale)
    move = jnp.asarray(shift)
    for name, value in (("shift", move), ("matrix_or_scale", factor)):
        if jnp.issubdtype(value.dtype, jnp.complexfloating) or value.dtype == jnp.bool_:
            raise TypeError(f"affine: {name} must be real numbers, got {value.dtype}.")
    dtype = numerics.compute_dtype(density)  # the result's: a shift is not rounded to bfloat16
    move, factor = (value.astype(dtype) for value in (move, factor))
    D = density.event_dim
    if factor.ndim <= 1:
        for name, value in (("shift", move), ("matrix_or_scale", factor)):
            if value.shape not in ((), (1,), (D,)):
                raise ValueError(
                    f"affine: expected {name} to be a number or of shape [{D}] where "
                    f"matrix_or_scale is a scale, got {list(value.shape)}; with a matrix "
                    f"[..., E, {D}] the shift may have batch axes."
                )
        if known and not np.all(np.asarray(matrix_or_scale)):
            raise ValueError(
                f"affine: a scale must not be zero, got {matrix_or_scale}; drop the dimension with "
                f"jaxmdn.marginal instead."
            )
        positive = _check_closure(density, shift, matrix_or_scale if known else None)
        factor = jnp.broadcast_to(factor, (D,))
        # A zero scale (a negative one, where the family has none) is no density.
        factor = jnp.where(factor > 0, factor, jnp.where(positive | (factor == 0), jnp.nan, factor))
        return _scale(density, jnp.broadcast_to(move, (D,)), factor)
    _check_matrix(matrix_or_scale if known else factor, D, known)
    require_normals("affine", "mixture", density)
    E = factor.shape[-2]
    if move.ndim and move.shape[-1] not in (1, E):
        raise ValueError(
            f"affine: expected shift to be a number or of shape [..., {E}], one entry per row of "
            f"the matrix, got {list(move.shape)}."
        )
    checks.require_broadcastable(
        "affine",
        density=density.batch_shape,
        shift=move.shape[:-1],
        matrix_or_scale=factor.shape[:-2],
    )
    return _transform(density, jnp.broadcast_to(move, (*move.shape[:-1], E)), factor)


def _check_closure(density: Any, shift: Any, scale: Any) -> np.ndarray:
    """Raise where a family does not take the map; return which dimensions take positive scales."""
    family, kinds = density, np.asarray(density.closure)
    while isinstance(family, Mixture):
        family = family.components
    name = type(family).__name__
    if np.any(kinds == "none"):
        dims = np.flatnonzero(kinds == "none").tolist()
        raise TypeError(f"affine: not defined for {name}: dimensions {dims} have no unit.")
    positive = kinds == "scale"
    known = isinstance(shift, (int, float, np.ndarray, np.number))
    moves = not known or np.any(np.broadcast_to(shift, kinds.shape)[positive] != 0)
    turns = scale is not None and np.any(np.broadcast_to(scale, kinds.shape)[kinds != "affine"] < 0)
    if turns and not np.any(positive):
        raise ValueError(f"affine: {name} takes a positive scale only, got {scale}.")
    if np.any(positive) and (moves or turns):
        raise ValueError(
            f"affine: dimensions {np.flatnonzero(positive).tolist()} of {name} take a positive "
            f"scale and no shift; pass 0.0 (a Python number or a NumPy array) as their shift."
        )
    return kinds != "affine"


def _check_matrix(matrix: Any, event_dim: int, known: bool) -> None:
    rows, columns = matrix.shape[-2:]
    if columns != event_dim or not 1 <= rows <= columns:
        raise ValueError(
            f"affine: expected a matrix [..., E, {event_dim}] with 1 <= E <= {event_dim}, got "
            f"{list(matrix.shape)}; more rows than columns would put all mass on a plane."
        )
    if known and np.any(np.linalg.matrix_rank(matrix) < rows):
        raise ValueError(
            f"affine: the matrix is singular (of rank below {rows}), so that {rows} dimensions "
            f"would have no density; leave out the rows that depend on others."
        )


@meshes.jit
def _scale(density: Density, shift: Array, scale: Array) -> Density:
    density, shift, scale = numerics.upcast_tree(density, shift, scale)
    return density.affine(shift, scale)


_transform = meshes.jit(transform)


@partial(meshes.jit, static_argnums=1)
def _marginal(density: Density, dims: tuple[int, ...]) -> Density:
    return density.marginal(dims)


@partial(meshes.jit, static_argnums=1)
def _condition(density: Density, dims: tuple[int, ...], values: Array) -> Density:
    return density.condition(dims, values)[1]


def _require_density(function: str, density: Any) -> None:
    if not isinstance(density, Density):
        raise TypeError(f"{function}: expected a density, got {type(density).__name__}.")


def _check_dims(function: str, dims: Sequence[int], event_dim: int) -> tuple[int, ...]:
    """Return ``dims`` as a tuple of Python integers, or raise."""
    if isinstance(dims, (int, np.integer)) or any(
        isinstance(d, bool) or not isinstance(d, (int, np.integer)) for d in dims
    ):
        raise TypeError(
            f"{function}: dims must be a sequence of Python ints, such as (0, 2), got {dims!r}."
        )
    known = tuple(int(d) for d in dims)
    wrong = [d for d in known if not 0 <= d < event_dim]
    if not known or wrong or len(set(known)) < len(known):
        raise ValueError(
            f"{function}: dims must be distinct indices in 0 .. {event_dim - 1}, at least one, "
            f"got {list(known)}."
        )
    return known
