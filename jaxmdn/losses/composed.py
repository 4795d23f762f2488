"""``log_prob(head(raw), y)``, which people write, at the price of ``nll(head, raw, y)``.

From the mixture alone, its parameters and their gradients are arrays of their own beside the raw
outputs and theirs, which takes up to three times as long. Within one program a mixture knows which
head made it of which raw outputs, so that the fused likelihood can begin there.
"""

from __future__ import annotations

from typing import Any

import jax

from jaxmdn import numerics
from jaxmdn.components.base import Density
from jaxmdn.heads import Head
from jaxmdn.losses.kernels.dispatch import choose
from jaxmdn.losses.likelihood import nll
from jaxmdn.mixture import Mixture, check_target
from jaxmdn.mixture import mixture as of_parameters
from jaxmdn.typing import Array, ArrayLike, Float, Num


def log_prob(density: Density, y: Num[ArrayLike, "..."]) -> Float[Array, "..."]:
    """Log-density of ``y`` under a mixture (or any other density), in nats.

    ``log p(y) = logsumexp_k(log w_k + log p_k(y))``.

    Args:
      density: a density with batch shape ``[...]``.
      y: targets ``[..., D]``; leading axes broadcast against the mixture's.

    Returns:
      ``[...]``, in the parameters' dtype but at least float32. A density can exceed one, so a
      log-density may well be positive.

    Raises:
      ValueError: if the event size is not ``D`` or the leading axes do not broadcast.
      TypeError: if ``y`` is not a floating-point array (class indices excepted).

    Limits: components of weight zero contribute nothing to value or gradient; ``-inf`` where every
    component underflows to it; NaN in gives NaN out.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((2, 1)), scale=jnp.ones((2, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(2), components=normal)
    >>> round(float(jaxmdn.log_prob(mixture, jnp.zeros(1))), 4)
    -0.9189

    References:
      Bishop (1994), Mixture Density Networks, eq. 29.
    """
    if isinstance(density, Mixture) and density.origin is not None:
        head, raw = density.origin
        if _serves(head, raw, y):
            check_target("log_prob", density, y)
            return -nll(head, raw, y, reduction="none")
    return of_parameters.log_prob(density, y)


def _serves(head: Head, raw: Array, y: Any) -> bool:
    """Whether the fused likelihood gives the same, of one target a row, and is the faster one."""
    shape, dtype = raw.shape[:-1], numerics.compute_dtype(raw)
    if not shape or getattr(y, "shape", (None,))[:-1] != shape:
        return False  # one row may be one of many, under vmap
    if numerics.compute_dtype(raw, y) != dtype:
        return False
    chosen = choose("log_prob", None, head, raw, dtype=dtype)
    # On a GPU blocks without a kernel move a fifth more than the parameters' own gradients do.
    return chosen == "pallas_triton" or (chosen != "xla" and jax.default_backend() == "cpu")
