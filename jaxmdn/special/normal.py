"""The normal distribution: its function with its derivative, its logarithm and integrals far out.

The derivative of ``log P(Z < z)`` is density over probability, the inverse of Mills' ratio. JAX
divides two numbers that underflow: from a few hundred scales on (1e8 in float64) nothing is right.
Here the ratio is a function of its own, ``h(x) = x + e(x)`` with ``x = -z``, and its derivative
``h(x) e(x)``, in which the small ``e`` is not a difference.
"""

from __future__ import annotations

import functools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfc

from jaxmdn import numerics
from jaxmdn.special.elementary import CUT, chebyshev, chebyshev_fit, integrate
from jaxmdn.typing import Array, Float

# e(x) (x + c) goes from 3.2 at zero to 1 at infinity; with c = 4 its Chebyshev series in
# 1 - 2 c / (x + c) is shortest: with these terms, by the dtype's bytes, its relative error is 5e-8
# and 3e-15.
_CENTRE, _TERMS = 4.0, {4: 13, 8: 26}
# Below, the logarithm of erfc has all digits; beyond, erfc will underflow (x = 13 in float32), and
# an error of e is small beside the square.
_FAR = 5.0
# By the dtype's bytes: Gauss nodes of half_moment. Beside 100 of them powers 0 and 2 change by
# rounding (20,000 offsets from 0 to 1e6).
_NODES = {4: 12, 8: 24}


def _exact_excess(x: float) -> float:
    """``e(x)`` in float64: as a difference for small ``x``, else ``1 / (x + 2 / (x + 3 / ...``."""
    if x < 2:
        return math.sqrt(2 / math.pi) * math.exp(-0.5 * x * x) / math.erfc(x * math.sqrt(0.5)) - x
    # Laplace's continued fraction; with 120 terms the error is 2e-15, here and above.
    return functools.reduce(lambda rest, k: k / (x + rest), range(120, 0, -1), 0.0)


@functools.cache
def _coefficients(count: int) -> np.ndarray:
    def scaled(nodes: np.ndarray) -> np.ndarray:
        x = _CENTRE * (1 + nodes) / (1 - nodes)
        return (x + _CENTRE) * np.array([_exact_excess(float(v)) for v in x])

    return chebyshev_fit(scaled, count)


@jax.custom_jvp
def hazard_excess(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``e(x) = f(x) / P(Z > x) - x`` for ``x >= 0``: from 0.8 at zero down to ``1 / x``."""
    shifted = x + _CENTRE
    series = chebyshev(1 - 2 * _CENTRE / shifted, _coefficients(_TERMS[x.dtype.itemsize]))
    return series / shifted


@hazard_excess.defjvp
def _hazard_excess_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    value = hazard_excess(x)
    finite = jnp.isfinite(x)
    return value, jnp.where(finite, jnp.where(finite, x + value, 0) * value - 1, 0) * dx


@jax.custom_jvp
def log_ndtr(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """``log P(Z < z)`` of a standard normal, with its derivatives however far out.

    The second derivative is accurate too; of the third the absolute error is rounding.
    """
    return _value_and_hazard(z)[0]


@log_ndtr.defjvp
def _log_ndtr_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    value, hazard = _value_and_hazard(primals[0])
    return value, hazard * tangents[0]


@jax.custom_jvp
def _value_and_hazard(z: Array) -> tuple[Array, Array]:
    """``log P(Z < z)`` and its derivative ``h``, whose own is ``-h (z + h)``."""
    x = jnp.abs(z)
    tail = 0.5 * erfc(x * math.sqrt(0.5))
    log_density = -0.5 * (x * x + numerics.LOG_2PI)
    hazard = x + hazard_excess(x)
    far = log_density - jnp.log(hazard)
    value = jnp.where(z > 0, jnp.log1p(-tail), jnp.where(x < _FAR, jnp.log(tail), far))
    return value, jnp.where(z > 0, jnp.exp(log_density) / (1 - tail), hazard)


@_value_and_hazard.defjvp
def _value_and_hazard_jvp(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    (z,), (dz,) = primals, tangents
    value, hazard = _value_and_hazard(z)
    excess = jnp.where(z > 0, z + hazard, hazard_excess(jnp.abs(z)))
    some = (hazard > 0) & (hazard < jnp.inf)  # at both ends the limits, 0 and 1
    slope = jnp.where(some, hazard, 0) * jnp.where(some, excess, 0)
    return (value, hazard), (hazard * dz, -jnp.where(z == -jnp.inf, 1, slope) * dz)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def half_moment(offset: Array, length: Array, power: int = 0) -> Array:
    """``int_0^length r^power exp(-offset r - r^2 / 2) dr`` for ``offset >= 0``.

    By Gauss nodes, up to where ``offset r + r^2 / 2`` has grown to the cut.
    """
    cut = CUT[offset.dtype.itemsize]
    end = 2 * cut / (offset + jnp.sqrt(offset * offset + 2 * cut))
    width = jnp.minimum(length, end)

    def integrand(node: Array) -> Array:
        r = width * node
        return r**power * jnp.exp(-r * (offset + 0.5 * r))

    return width * integrate(integrand, _NODES[width.dtype.itemsize], width)


@half_moment.defjvp
def _half_moment_jvp(power: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (offset, length), (doffset, dlength) = primals, tangents
    r = jnp.where(length < jnp.inf, length, 1)
    last = jnp.where(length < jnp.inf, r**power * jnp.exp(-r * (offset + 0.5 * r)), 0)
    value = half_moment(offset, length, power)
    return value, last * dlength - half_moment(offset, length, power + 1) * doffset


@jax.custom_jvp
def ndtr(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """``P(Z < z)`` of the standard normal; its derivative is written here.

    That of JAX 0.12 (through ``erf``) is refused where arrays vary over a mesh's manual axes.
    """
    return jax.scipy.special.ndtr(z)


ndtr.defjvps(lambda dz, _, z: math.exp(-0.5 * numerics.LOG_2PI) * jnp.exp(-0.5 * z * z) * dz)


@jax.custom_jvp
def erf(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The error function, with a derivative of its own as :func:`ndtr`."""
    return jax.lax.erf(x)


erf.defjvps(lambda dx, _, x: 2 / math.sqrt(math.pi) * jnp.exp(-x * x) * dx)
