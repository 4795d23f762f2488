"""Exact derivatives of analytic NumPy functions, to rounding, without a difference of two values.

``f(x + i h v) = f(x) + i h f'(x) v + O(h^2)``: with ``h = 1e-30`` the imaginary part is the
derivative and nothing cancels (Squire and Trapp 1998, Using complex variables to estimate
derivatives of real functions). The function must be written in analytic operations: no absolute
values, no conjugates; ``ndtr`` below is the normal cdf for complex numbers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

STEP = 1e-30


def ndtr(z):
    """Cdf of the standard normal at complex numbers."""
    return 0.5 * special.erfc(-np.asarray(z) / np.sqrt(2))


def derivative(function, arguments, directions):
    """Derivative of ``function(*arguments)`` along ``directions``; both are lists of arrays."""
    moved = [
        np.asarray(x, np.float64) + 1j * STEP * np.asarray(v)
        for x, v in zip(arguments, directions, strict=True)
    ]
    return jax.tree.map(lambda value: np.imag(value) / STEP, function(*moved))


def gradient(function, arguments):
    """Gradient of a scalar function in every number of ``arguments``, a list of arrays."""
    result = []
    for i, x in enumerate(arguments):
        slope = np.empty(np.shape(x))
        for index in np.ndindex(slope.shape):
            directions = [np.zeros(np.shape(other)) for other in arguments]
            directions[i][index] = 1.0
            slope[index] = derivative(function, arguments, directions)
        result.append(slope)
    return result


def log_density(dense, y):
    """Log-density of one row of ``oracles.Dense`` at one point, in analytic operations."""
    parts = [
        -0.5 * (y - loc) @ np.linalg.solve(covariance, y - loc)
        - 0.5 * np.log(np.linalg.det(2 * np.pi * covariance))
        for loc, covariance in zip(dense.loc, dense.covariances, strict=True)
    ]
    top = max(part.real for part in parts)
    return top + np.log(dense.weights @ np.exp(np.array(parts) - top))


def check(function, exact, *arguments, rtol=1e-9, atol=1e-10):
    """Compare the value and the derivatives of a scalar function, forward and reverse, with exact.

    ``exact`` is the same function of the same trees of arrays (mixtures with them), in NumPy. Where
    an array is zero (above the diagonal of a triangular one) its derivative is left out.
    """
    leaves, structure = jax.tree.flatten(arguments)
    leaves = [np.asarray(leaf, np.float64) for leaf in leaves]

    def of_leaves(*leaves):
        return exact(*jax.tree.unflatten(structure, leaves))

    slopes = gradient(of_leaves, leaves)
    owned = [leaf != 0 for leaf in leaves]
    directions = [
        np.cos(1.0 + np.arange(leaf.size)).reshape(leaf.shape) * own
        for leaf, own in zip(leaves, owned, strict=True)
    ]
    moved = jax.tree.unflatten(structure, list(map(jnp.asarray, directions)))

    @jax.jit
    def derivatives(*arguments):
        value, pull = jax.vjp(function, *arguments)
        return value, pull(jnp.ones_like(value)), jax.jvp(function, arguments, moved)[1]

    value, back, forward = derivatives(*arguments)
    np.testing.assert_allclose(value, of_leaves(*leaves), rtol=rtol, atol=atol)
    for found, slope, own in zip(jax.tree.leaves(back), slopes, owned, strict=True):
        np.testing.assert_allclose(np.asarray(found)[own], slope[own], rtol=rtol, atol=atol)
    change = sum(np.sum(slope * way) for slope, way in zip(slopes, directions, strict=True))
    np.testing.assert_allclose(forward, change, rtol=rtol, atol=atol)


def implicit(residual, solution, arguments, directions):
    """Derivative of the ``solution`` of ``residual(solution, *arguments) = 0``, a vector.

    By the implicit function theorem: a linear system whose matrix and right-hand side are exact.
    """
    solution = np.asarray(solution, np.float64)
    still = [np.zeros(np.shape(x)) for x in arguments]
    columns = [
        derivative(residual, [solution, *arguments], [unit, *still])
        for unit in np.eye(solution.size)
    ]
    moved = derivative(residual, [solution, *arguments], [0 * solution, *directions])
    return -np.linalg.solve(np.stack(columns, axis=-1), moved)
