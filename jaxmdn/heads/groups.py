"""Groups of targets: where the components of a head begin."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmdn import meshes
from jaxmdn.typing import Array, Float, Int, Key

# Rounds of k-means after seeding; the start need not be its optimum.
LLOYD_STEPS = 10


def group_means(
    assignment: Int[Array, "N"], y: Float[Array, "N D"], weights: Float[Array, "N"], count: int
) -> tuple[Float[Array, "K"], Float[Array, "K D"]]:
    """Share and mean of each group; an empty group sits at the overall mean (zero)."""
    member = jax.nn.one_hot(assignment, count, dtype=y.dtype) * weights[:, None]  # [N, K]
    share = jnp.sum(member, axis=0)
    sums = jnp.einsum("nk,nd->kd", member, y, precision="highest")
    return share, sums / jnp.where(share > 0, share, 1.0)[:, None]


def quantile_groups(
    key: Key[Array, ""], y: Float[Array, "N 1"], weights: Float[Array, "N"], count: int
) -> Int[Array, "N"]:
    """Groups of equal weight in sorted order (the key is not needed)."""
    order = jnp.argsort(y[:, 0])
    ranked = weights[order]
    middle = jnp.cumsum(ranked) - 0.5 * ranked
    group = jnp.clip((count * middle).astype(jnp.int32), 0, count - 1)
    return jnp.zeros(len(y), jnp.int32).at[order].set(group)


def k_means(
    key: Key[Array, ""], y: Float[Array, "N D"], weights: Float[Array, "N"], count: int
) -> Int[Array, "N"]:
    """Groups by k-means++ seeding and a few Lloyd steps."""

    def distance(centre: Array) -> Array:  # [D] -> [N]
        return jnp.sum((y - centre) ** 2, axis=-1)

    def nearest_centre(centres: Array) -> Array:  # [K, D] -> [N]
        return jnp.argmin(jax.vmap(distance)(centres), axis=0)

    def seed(nearest: Array, key: Array) -> tuple[Array, Array]:
        odds = weights * jnp.where(jnp.any(weights * nearest > 0), nearest, 1.0)
        centre = y[jax.random.categorical(key, jnp.log(odds))]
        return jnp.minimum(nearest, distance(centre)), centre

    key_first, key_rest = jax.random.split(key)
    first = y[jax.random.categorical(key_first, jnp.log(weights))]
    _, rest = meshes.scan(seed, distance(first), jax.random.split(key_rest, count - 1))
    seeds = jnp.concatenate([first[None], rest])

    def lloyd(_: Any, centres: Array) -> Array:
        share, means = group_means(nearest_centre(centres), y, weights, count)
        return jnp.where(share[:, None] > 0, means, centres)

    return nearest_centre(meshes.fori_loop(0, LLOYD_STEPS, lloyd, seeds))


def assign(
    key: Key[Array, ""], y: Float[Array, "N D"], weights: Float[Array, "N"], count: int
) -> Int[Array, "N"]:
    """The group of each row: quantile groups of a scalar target, else by k-means++."""
    return (quantile_groups if y.shape[1] == 1 else k_means)(key, y, weights, count)
