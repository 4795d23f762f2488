"""Stacking: the weights of several models that held-out rows like best."""

from __future__ import annotations

import jax.numpy as jnp

from jaxmdn import checks, meshes, numerics
from jaxmdn.typing import Array, Float


def stacking_weights(
    log_prob: Float[Array, "N A"], *, weights: Float[Array, "N"] | None = None
) -> Float[Array, "A"]:
    """The weights of several models that give held-out rows the highest likelihood.

    Maximises ``sum_i v_i log sum_a w_a p_a(y_i)`` over the simplex. The problem is concave; the
    iteration ``w_a <- w_a sum_i v_i p_a(y_i) / p(y_i)`` (expectation maximisation) climbs to its
    maximum, and ``max_a sum_i v_i p_a(y_i) / p(y_i) - 1`` bounds what is left to gain: it stops
    where that is below 1e-5 nats a row.

    Args:
      log_prob: log-densities of held-out rows under each model, ``[N, A]``, nats.
      weights: nonnegative row weights ``[N]``; a row of weight zero may hold anything.

    Returns:
      Weights ``[A]`` that add up to one.

    Limits: at most 20,000 iterations; rows that no model reaches (all ``-inf``) do not count. NaN
    in a row that counts, a negative weight and no weight at all give NaN.

    >>> import jax.numpy as jnp, jaxmdn
    >>> log_prob = jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9]]))
    >>> [round(float(w), 3) for w in jaxmdn.calibration.stacking_weights(log_prob)]
    [0.708, 0.292]

    References:
      Wolpert (1992), Stacked generalization; Smyth and Wolpert (1999), Linearly combining density
      estimators via stacking, section 3.
    """
    checks.require_floating("stacking_weights", "log_prob", log_prob)
    if log_prob.ndim != 2 or 0 in log_prob.shape:
        raise ValueError(
            f"stacking_weights: expected log_prob of shape [N, A] (rows, models), got "
            f"{list(log_prob.shape)}."
        )
    rows = jnp.ones(log_prob.shape[0], log_prob.dtype) if weights is None else weights
    if jnp.shape(rows) != log_prob.shape[:1]:
        raise ValueError(
            f"stacking_weights: expected weights of shape [{log_prob.shape[0]}], one a row, got "
            f"{list(jnp.shape(rows))}."
        )
    return _stack(log_prob, jnp.asarray(rows))


@meshes.jit
def _stack(log_prob: Array, rows: Array) -> Array:
    log_prob, rows = numerics.upcast(log_prob, rows)
    rows = jnp.where(rows < 0, jnp.nan, rows)
    log_prob = jnp.where((rows == 0)[:, None], 0, log_prob)
    peak = numerics.finite_peak(log_prob)
    density = jnp.exp(log_prob - peak)
    rows = jnp.where(jnp.all(jnp.isneginf(log_prob), axis=-1), 0, rows)
    rows = rows / jnp.sum(rows)

    def climb(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        share, _, step = carry
        ratio = rows @ (density / jnp.maximum(density @ share, 1e-30)[:, None])
        return share * ratio / (share @ ratio), jnp.max(ratio) - 1, step + 1

    def more(carry: tuple[Array, Array, Array]) -> Array:
        return (carry[1] > 1e-5) & (carry[2] < 20_000)

    count = density.shape[1]
    start = jnp.full(count, 1 / count, density.dtype)
    return meshes.while_loop(more, climb, (start, start[0] + jnp.inf, jnp.zeros((), jnp.int32)))[0]
