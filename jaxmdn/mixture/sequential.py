"""One dimension after another: conditionals, and the derivative of a sample in every parameter.

Any density is a product of univariate ones, ``p(y) = prod_d p(y_d | y_<d)``. For a mixture the
weights of step ``d`` are the responsibilities of the dimensions before it,

    r_kd ~ w_k prod_{e<d} p_k(y_e | y_<e),      F_d(y_d) = sum_k r_kd F_kd(y_d).

The numbers ``u_d = F_d(y_d)`` are Rosenblatt's: independent and uniform if ``y`` is a sample. Held
fixed while the parameters move, they say how the sample moves. The map's Jacobian is lower
triangular with the conditional densities on its diagonal, so that the linear system that gives the
derivative is solved in one sweep over the dimensions, K numbers wide.

References:
  Rosenblatt (1952), Remarks on a multivariate transformation.
  Graves (2016), Stochastic backpropagation through mixture density distributions.
  Figurnov et al. (2018), Implicit reparameterization gradients, eq. 5.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmdn import meshes, numerics
from jaxmdn.components import Independent
from jaxmdn.components.base import Density
from jaxmdn.mixture.class_conditional import flatten_mixture
from jaxmdn.mixture.mixture import Mixture
from jaxmdn.typing import Array, Float, Num

#: Up to how many dimensions the sweep is written out: one fused pass, at the price of compile time.
UNROLL = 4


class Conditionals(NamedTuple):
    """Each dimension given those before it, in order; every entry ``[..., D]``.

    Attributes:
      log_density: ``log p(y_d | y_<d)``, nats; their sum is ``log p(y)``.
      cdf: ``P(Y_d <= y_d | y_<d)``.
      survival: ``P(Y_d > y_d | y_<d)``, without the cancellation of ``1 - cdf``.
    """

    log_density: Array
    cdf: Array
    survival: Array


def conditionals(density: Density, y: Float[Array, "... D"]) -> Conditionals:
    """Evaluate ``p(y_d | y_<d)`` and ``F(y_d | y_<d)`` for every dimension.

    Limits: after dimensions that no component reaches (all densities underflow) there is nothing
    to be conditioned on: the cdf is NaN, the log-density ``-inf``.
    """
    family, e, log_density, joint = _components(density, y)
    cdf, survival = numerics.upcast(family.cdf(e), family.survival(e))
    if joint is not None:
        log_density = numerics.logsumexp(joint + log_density, axis=-2)
    return Conditionals(log_density, _average(joint, cdf), _average(joint, survival))


def conditional_jumps(
    density: Density, y: Num[Array, "... D"]
) -> tuple[Float[Array, "... D"], Float[Array, "... D"]]:
    """``P(Y_d < y_d | y_<d)`` and ``P(Y_d = y_d | y_<d)``; the latter zero but where a cdf jumps.

    Limits as in :func:`conditionals`.
    """
    if isinstance(density, Independent):  # mixtures side by side
        below, at = (
            density.apply(lambda part, own, side=side: conditional_jumps(part, own)[side], y)
            for side in (0, 1)
        )
        return below, at
    family, e, _, joint = _components(density, y)
    below, at = family.jump(e)
    return _average(joint, below), _average(joint, at)


def _components(density: Density, y: Num[Array, "... D"]) -> tuple[Density, Array, Array, Any]:
    """Independent dimensions, where to ask them, ``log p_k(y_d | y_<d)``, ``log r_kd`` or None."""
    if not isinstance(density, Mixture):
        family, e = density.given_before(y)
        return family, e, numerics.upcast(family.marginal_log_prob(e))[0], None
    flat = flatten_mixture(density)
    family, e = flat.components.given_before(y[..., None, :])
    log_density = numerics.upcast(family.marginal_log_prob(e))[0]
    return family, e, log_density, _log_responsibilities(flat.log_weights(), log_density)


def _average(joint: Array | None, values: Array) -> Float[Array, "... D"]:
    """The mean over the components, weighted by ``r_kd``, of values ``[..., K, D]``."""
    if joint is None:
        return values
    weights = jnp.exp(joint)
    total = jnp.sum(weights, axis=-2)  # one, up to rounding; zero where no component is left
    return jnp.sum(weights * values, axis=-2) / jnp.where(total == 0, jnp.nan, total)


def _log_responsibilities(
    log_weights: Float[Array, "... K"], log_density: Float[Array, "... K D"]
) -> Float[Array, "... K D"]:
    """``log r_kd``: the weights given the dimensions before ``d``."""
    log_weights, log_density = numerics.upcast(log_weights, log_density)
    before = jnp.cumsum(log_density[..., :-1], axis=-1)
    before = jnp.concatenate([jnp.zeros_like(log_density[..., :1]), before], axis=-1)
    joint = jnp.swapaxes(log_weights[..., None] + before, -1, -2)  # [..., D, K]
    return jnp.swapaxes(numerics.log_normalize(joint), -1, -2)


def reattach(density: Density, samples: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Return ``samples`` unchanged, with the derivative of samples at fixed Rosenblatt numbers.

    Where a conditional density underflows, that dimension's derivative is zero.
    """
    dtype = samples.dtype
    if not isinstance(density, Mixture):  # one component
        single: Any = density.map_parameters(lambda leaf, rank: jnp.expand_dims(leaf, -1 - rank))
        density = Mixture(logits=jnp.zeros((*density.batch_shape, 1), dtype), components=single)
    wide, samples = numerics.upcast_tree(flatten_mixture(density), samples)
    return _reattach(wide, jax.lax.stop_gradient(samples)).astype(dtype)


@jax.custom_jvp
def _reattach(mixture: Mixture, samples: Array) -> Array:
    return samples


@_reattach.defjvp
@meshes.any_rank
def _reattach_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    mixture, samples = primals
    samples = _reattach(mixture, samples)  # itself differentiable: the second derivative is right
    return samples, _velocity(mixture, samples, tangents[0])


def _velocity(mixture: Mixture, samples: Array, dmixture: Mixture) -> Float[Array, "... D"]:
    """Solve ``sum_e (dF_d / dy_e) dy_e = -dF_d`` for ``dy``, one dimension after another."""
    y = samples[..., None, :]  # [..., 1, D]

    family, e, rows = mixture.components.innovations(y)
    log_weights, log_density, cdf = numerics.upcast(
        mixture.log_weights(), family.marginal_log_prob(e), family.cdf(e)
    )
    joint = _log_responsibilities(log_weights, log_density)
    weights = jnp.exp(joint)  # [..., K, D]
    _, slope = jax.jvp(family.marginal_log_prob, (e,), (jnp.ones_like(e),))
    # A component that does not reach the sample has no share in it, however steep it is there.
    lost = jnp.isneginf(log_density) | jnp.isinf(slope)
    upper = jnp.sum(weights * cdf, axis=-2, keepdims=True) > 0.5
    sign = jnp.where(upper, -1, 1).astype(y.dtype)  # F_d or -S_d: of neither does anything cancel

    def at(mixture: Mixture) -> tuple[Array, ...]:
        family, e, _ = mixture.components.innovations(y)
        tail = sign * family.tail(e, jnp.broadcast_to(upper, e.shape))
        return mixture.log_weights(), family.marginal_log_prob(e), tail

    (_, _, tail), (dlog_weights, dlog, dtail) = jax.jvp(at, (mixture,), (dmixture,))
    density = jnp.exp(numerics.logsumexp(joint + log_density, axis=-2))  # [..., D]
    vanished = density < float(jnp.finfo(density.dtype).tiny)
    steps = {
        "weight": weights,
        "tail": tail,
        "dtail": dtail,
        "density": jnp.exp(log_density),
        "slope": jnp.where(lost, 0, slope),
        "dlog": jnp.where(lost, 0, dlog),
    }
    shape = jnp.broadcast_shapes(*(part.shape for part in steps.values()))  # [..., K, D]
    steps = {name: _dimension_first(part, shape) for name, part in steps.items()}
    inverse = jnp.where(vanished, 0, 1 / jnp.where(vanished, 1, density))
    steps["inverse"] = _dimension_first(inverse, (*shape[:-2], shape[-1]))
    steps["unit"] = jnp.eye(shape[-1], dtype=samples.dtype)
    if rows is not None:
        steps["rows"] = jnp.moveaxis(rows, -2, 0)  # [D, ..., K, D]
    dy = jnp.zeros((*shape[:-2], shape[-1]), samples.dtype)
    start = (dy, jnp.broadcast_to(dlog_weights, shape[:-1]))
    return meshes.scan(_solve_row, start, steps, unroll=shape[-1] <= UNROLL)[0][0]


def _dimension_first(part: Array, shape: tuple[int, ...]) -> Float[Array, "D ..."]:
    return jnp.moveaxis(jnp.broadcast_to(part, shape), -1, 0)


def _solve_row(state: tuple[Array, Array], row: dict[str, Array]) -> tuple[tuple, None]:
    """Find one dimension's derivative from those of the dimensions before it.

    The state is ``dy [..., D]``, zero from here on, and the tangents of ``log w_k p_k(y_<d)``.
    """
    dy, dlog = state
    # The tail's own tangent, and that of r_kd = softmax(log w_k p_k(y_<d)).
    dlog_mean = numerics.weighted_sum(row["weight"], dlog, -1)[..., None]
    moved = (dlog - dlog_mean) * row["tail"] + row["dtail"]
    shift = jnp.zeros_like(dlog)  # of each component's innovation, by dy_<d
    if "rows" in row:
        shift = numerics.matvec(row["rows"], dy)
        moved = moved + row["density"] * shift
    change = -numerics.weighted_sum(row["weight"], moved, -1) * row["inverse"]  # [...]
    dlog = dlog + row["dlog"] + row["slope"] * (change[..., None] + shift)
    return (dy + change[..., None] * row["unit"], dlog), None
