"""Drawing from a mixture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax

from jaxmdn import checks
from jaxmdn.components.base import Density
from jaxmdn.mixture import Mixture
from jaxmdn.typing import Array, Int, Key, Num


def sample(
    key: Key[Array, ""],
    mixture: Density,
    shape: int | Sequence[int] = (),
    *,
    return_index: bool = False,
) -> Num[Array, "..."] | tuple[Num[Array, "..."], Int[Array, "..."]]:
    """Draw independent samples.

    The component is drawn by inverting the cdf of one uniform number, then that component alone is
    gathered and sampled: K-fold work and memory never arise, nor does ``0 * inf``.

    Args:
      key: a typed key, ``jax.random.key(seed)``.
      mixture: a density with batch shape ``[...]``.
      shape: sample shape, put in front: a number or several (static).
      return_index: also return the component each draw came from (static).

    Returns:
      Samples ``shape + [..., D]`` in the parameters' dtype; with ``return_index``, also ``int32``
      indices ``shape + [...]``. The samples are differentiable with respect to the chosen
      component's parameters, not with respect to the weights.

    >>> import jax, jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((5, 2, 3)), scale=jnp.ones((5, 2, 3)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros((5, 2)), components=normal)
    >>> jaxmdn.sample(jax.random.key(0), mixture, (7,)).shape
    (7, 5, 3)
    """
    if not isinstance(mixture, Density):
        raise TypeError(
            f"sample: expected a density, got {type(mixture).__name__}; the order is "
            f"sample(key, mixture, shape)."
        )
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    for size in shape:
        checks.require_count("sample", "shape", size, minimum=0)
    if return_index and not isinstance(mixture, Mixture):
        raise TypeError(
            f"sample: return_index needs a Mixture, got {type(mixture).__name__}, which has no "
            f"components to choose from."
        )
    return _sample(key, mixture, shape, return_index)


@partial(jax.jit, static_argnums=(2, 3))
def _sample(key: Array, mixture: Any, shape: tuple[int, ...], return_index: bool) -> Any:
    return mixture.sample_with_index(key, shape) if return_index else mixture.sample(key, shape)
