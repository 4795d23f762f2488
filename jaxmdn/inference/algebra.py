"""Algebra of densities: linear maps, products, temperatures. All exact, all mixtures again.

Covariances are never formed. A linear map acts on a square root of each (``C = M M^T``) or on the
whitening factor (``C^-1 = W^T W``), and an orthogonal factorisation makes the result triangular.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import checks, meshes, numerics
from jaxmdn.components import (
    Categorical,
    FullNormal,
    Independent,
    LowRankNormal,
    Normal,
    NormalDensity,
)
from jaxmdn.components.base import Density
from jaxmdn.components.batch import flatten
from jaxmdn.inference.widening import scaled, stretched
from jaxmdn.mixture import Mixture
from jaxmdn.mixture.class_conditional import flatten_mixture
from jaxmdn.typing import Array, ArrayLike, Float, Num


class Product(NamedTuple):
    """What :func:`product` returns.

    Attributes:
      mixture: the normalised product, ``K_a K_b`` components.
      log_normalizer: ``log`` of the integral of the product of the two densities, ``[...]``.
    """

    mixture: Any
    log_normalizer: Array


def product(a: Mixture, b: Mixture) -> Product:
    """Multiply two densities of the same quantity: ``p(y) = p_a(y) p_b(y) / Z``.

    This is how independent evidence is pooled (a prior and a likelihood, two sensors). The product
    of two normals is a normal times a constant::

        N(y; a, A) N(y; b, B) = N(a; b, A + B) N(y; c, C),   C^-1 = A^-1 + B^-1,

    so that the product of mixtures has one component for each pair.

    Args:
      a: a mixture of normals (any covariance) of batch shape ``[...]`` over D dimensions.
      b: another over the same dimensions; batch axes broadcast. Class-conditional densities are
        flattened.

    Returns:
      The mixture and ``log Z`` (nats; of the unit ``1 / y^D``). Component ``i K_b + j`` comes from
      component ``i`` of ``a`` and ``j`` of ``b``. Independent dimensions stay independent
      (:class:`~jaxmdn.components.Normal`); otherwise the result has full covariance.

    Raises:
      TypeError: if an argument is no mixture of normals.
      ValueError: if D differs or the batch shapes do not broadcast.

    Limits: factors far apart give a ``log Z`` of minus hundreds of thousands without underflow; the
    mean is worth a rounding of their distance in units of the wider one's scale.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.array([[2.0]]), scale=jnp.ones((1, 1)))
    >>> a = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    >>> pooled, log_normalizer = jaxmdn.product(a, a)
    >>> round(float(jaxmdn.variance(pooled)[0]), 4), round(float(log_normalizer), 4)
    (0.5, -1.2655)

    References:
      Bromiley (2003), Products and convolutions of Gaussian probability density functions, eq. 5
      and 14.
    """
    for name, mixture in (("a", a), ("b", b)):
        require_normals("product", name, mixture)
    if a.event_dim != b.event_dim:
        raise ValueError(
            f"product: both densities must have the same event dimension D, got {a.event_dim} and "
            f"{b.event_dim}; take the marginal of the dimensions they share first."
        )
    checks.require_broadcastable("product", a=a.batch_shape, b=b.batch_shape)
    return _product(a, b)


@meshes.jit
def _product(a: Mixture, b: Mixture) -> Product:
    a, b = numerics.upcast_tree(flatten_mixture(a), flatten_mixture(b))
    left = a.components.map_parameters(lambda leaf, rank: jnp.expand_dims(leaf, -1 - rank))
    right = b.components.map_parameters(lambda leaf, rank: jnp.expand_dims(leaf, -2 - rank))
    pairs: Density
    if isinstance(left, Normal) and isinstance(right, Normal):
        pairs, log_overlap = _product_independent(left, right)  # batch [..., K_a, K_b]
    else:
        pairs, log_overlap = _product_full(left, right)
    logits = a.log_weights()[..., :, None] + b.log_weights()[..., None, :] + log_overlap
    logits = logits.reshape(*logits.shape[:-2], -1)
    return Product(Mixture(logits=logits, components=flatten(pairs)), numerics.logsumexp(logits))


def _product_independent(a: Normal, b: Normal) -> tuple[Normal, Array]:
    # With D = 1 numbers of either: scales s and t, h = sqrt(s^2 + t^2); C = (s t / h)^2.
    large, small = jnp.maximum(a.scale, b.scale), jnp.minimum(a.scale, b.scale)
    ratio = small / large
    stretch = jnp.sqrt(1 + ratio * ratio)
    distance = b.loc - a.loc
    narrow_a = a.scale <= b.scale
    # The narrower one's mean, moved a little towards the other's: nothing large cancels.
    share = (ratio / stretch) ** 2
    loc = jnp.where(narrow_a, a.loc + share * distance, b.loc - share * distance)
    overlap = Normal(loc=a.loc, scale=large * stretch).log_prob(b.loc)
    return Normal(loc=loc, scale=small / stretch), overlap


def _product_full(a: Any, b: Any) -> tuple[FullNormal, Array]:
    # A + B = [M_a M_b] [M_a M_b]^T = S S^T; with [M_a M_b]^T = Q S^T the mean is
    # a + A (A + B)^-1 (b - a) = a + M_a Q_a t, t = S^-1 (b - a), and -log Z is half of |t|^2 plus
    # constants: a sum of squares that cancels nothing.
    roots = [part.square_root() for part in (a, b)]
    whitenings = [part.whitening() for part in (a, b)]
    lead = jnp.broadcast_shapes(a.batch_shape, b.batch_shape)
    stacked, rows = (
        jnp.concatenate(
            [jnp.broadcast_to(part, (*lead, *part.shape[-2:])) for part in parts], axis=axis
        )
        for parts, axis in ((roots, -1), (whitenings, -2))
    )
    basis, scale_tril = numerics.triangular(stacked)
    distance = b.loc - a.loc
    t = numerics.solve_tril(scale_tril, distance)
    width = roots[0].shape[-1]
    from_a = numerics.matvec(roots[0], numerics.matvec(basis[..., :width, :], t))
    from_b = numerics.matvec(roots[1], numerics.matvec(basis[..., width:, :], t))
    # Each dimension is counted from the mean of the density that is narrower there.
    wide_a = _row_norms(roots[0]) > _row_norms(roots[1])
    loc = jnp.where(wide_a, b.loc - from_b, a.loc + from_a)
    log_diagonal = jnp.log(jnp.diagonal(scale_tril, axis1=-2, axis2=-1))
    overlap = -0.5 * jnp.sum(t * t, axis=-1) - jnp.sum(log_diagonal, axis=-1)
    overlap = overlap - 0.5 * numerics.LOG_2PI * loc.shape[-1]
    return FullNormal(loc=loc, whitening_tril=numerics.lower_factor(rows)), overlap


def _row_norms(root: Array) -> Array:
    return jnp.sum(jax.lax.stop_gradient(root) ** 2, axis=-1)


def transform(mixture: Mixture, shift: Array, matrix: Array) -> Mixture:
    """The mixture of ``shift + matrix y``; ``shift [..., E]``, ``matrix [..., E, D]``, E <= D."""
    mixture, shift, matrix = numerics.upcast_tree(flatten_mixture(mixture), shift, matrix)
    shift, matrix = shift[..., None, :], matrix[..., None, :, :]  # one for all components
    components: Any = mixture.components
    loc = shift + numerics.matvec(matrix, components.loc)
    if matrix.shape[-2] == matrix.shape[-1] and not isinstance(components, LowRankNormal):
        columns = jnp.swapaxes(components.whitening(), -1, -2)
        lead = jnp.broadcast_shapes(matrix.shape[:-2], columns.shape[:-2])
        turned = jnp.broadcast_to(jnp.swapaxes(matrix, -1, -2), (*lead, *matrix.shape[-2:]))
        solved = jnp.linalg.solve(turned, jnp.broadcast_to(columns, (*lead, *columns.shape[-2:])))
        whitening = numerics.lower_factor(jnp.swapaxes(solved, -1, -2))  # of W A^-1
    else:
        root = jnp.einsum(
            "...ed,...dm->...em", matrix, components.square_root(), precision="highest"
        )
        whitening = numerics.invert_tril(numerics.triangular(root)[1])
    known = jnp.all(jnp.isfinite(whitening), axis=(-2, -1), keepdims=True)
    whitening = jnp.where(known, whitening, jnp.nan)  # a singular matrix has no density
    return Mixture(logits=mixture.logits, components=FullNormal(loc=loc, whitening_tril=whitening))


def temper(
    density: Density,
    *,
    weight_temperature: Num[ArrayLike, "..."] = 1.0,
    scale_temperature: Num[ArrayLike, "..."] = 1.0,
) -> Any:
    """Sharpen or flatten a density: ``logits / T_w``, and every variance times ``T_s``.

    Scales (and loadings) are multiplied by ``sqrt(T_s)``, locations stay. Below one the samples
    become more typical and less diverse; with both towards zero all of them are the mean of the
    most likely component, with both at one nothing changes.

    Args:
      density: a mixture; a categorical density, whose logits are divided; or independent ones of
        these, each of which is tempered. A class-conditional mixture is flattened: ``T_w`` then
        divides the joint log-weights of class and component.
      weight_temperature: ``T_w``, positive; a number, or one for each mixture ``[...]``.
      scale_temperature: ``T_s``, positive, likewise; other than the number 1 for components with a
        location and a scale only (and for classes, which have none and stay). For a Student-t it
        multiplies the squared scale; its degrees of freedom stay.

    Returns:
      The same family and the same K.

    Raises:
      ValueError: for a Python number or NumPy array that is not positive, or does not broadcast.
      TypeError: for a density without weights, or components without a scale.

    Limits: a traced temperature of zero or below gives NaN. Weights of zero stay zero.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.array([[0.0], [3.0]]), scale=jnp.ones((2, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.log(jnp.array([0.2, 0.8])), components=normal)
    >>> cold = jaxmdn.temper(mixture, weight_temperature=0.5, scale_temperature=0.25)
    >>> [round(float(w), 4) for w in cold.weights()], cold.components.scale[:, 0].tolist()
    ([0.0588, 0.9412], [0.5, 0.5])

    References:
      Ha and Eck (2018), A neural representation of sketch drawings, eq. 8 (there one temperature
      is both).
    """
    if not isinstance(density, Density):
        raise TypeError(f"temper: expected a Mixture, got {type(density).__name__}.")
    temperatures = []
    for name, value in (
        ("weight_temperature", weight_temperature),
        ("scale_temperature", scale_temperature),
    ):
        if isinstance(value, (int, float, np.ndarray, np.number)) and not np.all(
            np.asarray(value) > 0
        ):
            raise ValueError(
                f"temper: {name} must be positive, got {value}; a small one such as 1e-3 is close "
                f"to the limit."
            )
        temperatures.append(jnp.asarray(value, numerics.compute_dtype(*jax.tree.leaves(density))))
        checks.require_broadcastable(
            "temper", **{"density": density.batch_shape, name: temperatures[-1].shape}
        )
    same = isinstance(scale_temperature, (int, float)) and scale_temperature == 1
    return _temper(density, temperatures[0], None if same else temperatures[1])


@meshes.jit
def _temper(density: Density, weight_temperature: Array, scale_temperature: Array | None) -> Any:
    if isinstance(density, Independent):
        parts = (_temper(part, weight_temperature, scale_temperature) for part in density.parts)
        return dataclasses.replace(density, parts=tuple(parts))
    if isinstance(density, Categorical):
        return Categorical(logits=_cool(density.logits, weight_temperature))
    if not isinstance(density, Mixture):
        raise TypeError(f"temper: expected a Mixture, got {type(density).__name__}.")
    mixture = flatten_mixture(density)
    components = mixture.components
    if scale_temperature is not None:
        if not scaled(components):
            raise TypeError(
                f"temper: not defined for {type(components).__name__}, which has no location and "
                f"scale; leave scale_temperature at 1."
            )
        warm = jnp.where(scale_temperature > 0, scale_temperature, jnp.nan)
        components = stretched(components, jnp.sqrt(warm)[..., None])
    return Mixture(logits=_cool(mixture.logits, weight_temperature), components=components)


def _cool(logits: Float[Array, "... K"], temperature: Array) -> Float[Array, "... K"]:
    (wide,) = numerics.upcast(logits)
    # The largest is subtracted first: it stays finite however cold, and the others fall to -inf.
    wide = wide - numerics.finite_peak(wide)
    cold = jnp.where(temperature > 0, temperature, jnp.nan)[..., None].astype(wide.dtype)
    dead = jnp.isneginf(wide)
    return jnp.where(dead, -jnp.inf, jnp.where(dead, 0, wide) / cold).astype(logits.dtype)


def require_normals(function: str, name: str, mixture: Any) -> None:
    """Raise ``TypeError`` unless ``mixture`` is a mixture of normals, or of mixtures of them."""
    if not isinstance(mixture, Mixture):
        raise TypeError(
            f"{function}: {name} must be a Mixture, got {type(mixture).__name__}; "
            f"a head returns one: mixture = head(raw)."
        )
    family: Density = mixture.components
    while isinstance(family, Mixture):
        family = family.components
    if not isinstance(family, NormalDensity):
        raise TypeError(
            f"{function}: not defined for {type(family).__name__}; the components of {name} must "
            f"be normal (any covariance)."
        )
