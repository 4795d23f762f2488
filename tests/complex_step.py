"""Exact derivatives of analytic NumPy functions, to rounding, without a difference of two values.

``f(x + i h v) = f(x) + i h f'(x) v + O(h^2)``: with ``h = 1e-30`` the imaginary part is the
derivative and nothing cancels (Squire and Trapp 1998, Using complex variables to estimate
derivatives of real functions). The function must be written in analytic operations: no absolute
values, no conjugates; ``ndtr`` below is the normal cdf for complex numbers.
"""

from __future__ import annotations

import jax
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
