"""Drawing from a mixture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax

from jaxmdn import checks
from jaxmdn.components.base import Density
from jaxmdn.mixture.mixture import Mixture
from jaxmdn.mixture.sequential import reattach
from jaxmdn.typing import Array, Int, Key, Num


def sample(
    key: Key[Array, ""],
    mixture: Density,
    shape: int | Sequence[int] = (),
    *,
    return_index: bool = False,
    reparameterize: bool = False,
) -> Num[Array, "..."] | tuple[Num[Array, "..."], Int[Array, "..."]]:
    """Draw independent samples.

    The component is drawn by inverting the cdf of one uniform number, then that component alone is
    gathered and sampled: K-fold work and memory never arise, nor does ``0 * inf``.

    Args:
      key: a typed key, ``jax.random.key(seed)``.
      mixture: a density with batch shape ``[...]``.
      shape: sample shape, put in front: a number or several (static).
      return_index: also return the component each draw came from (static).
      reparameterize: make the same samples differentiable in every parameter, the weights included
        (static).

    Returns:
      Samples ``shape + [..., D]`` in the parameters' dtype; with ``return_index``, also ``int32``
      indices ``shape + [...]``. The samples are differentiable with respect to the chosen
      component's parameters, not with respect to the weights. With ``reparameterize`` they are
      differentiable in both, so that the derivative of ``mean(f(sample))`` is an unbiased estimate
      of that of ``E[f(Y)]``: each sample moves as the point whose conditional probabilities
      ``F(y_d | y_<d)`` stay as they are. The index has no derivative.

    Raises:
      TypeError: if ``mixture`` is no density, if ``return_index`` meets one without components, or
        ``reparameterize`` one without a cdf (categorical).

    Limits: where a conditional density underflows, the reparameterised derivative of that dimension
    is zero. Mass moves between modes through the gap between them, where samples are few and their
    derivatives (divided by the density) large. So the estimate is unbiased, but its variance grows
    fast with the gap; from about six standard deviations on no affordable number of draws sees what
    the weights do, and the score function is the better estimator. The derivative costs about as
    much as a few of ``log_prob``; for low-rank components it forms ``D^2`` numbers each.

    >>> import jax, jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((5, 2, 3)), scale=jnp.ones((5, 2, 3)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros((5, 2)), components=normal)
    >>> jaxmdn.sample(jax.random.key(0), mixture, (7,)).shape
    (7, 5, 3)

    References:
      Figurnov et al. (2018), Implicit reparameterization gradients, eq. 5; Graves (2016),
      Stochastic backpropagation through mixture density distributions.
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
    if reparameterize and mixture.discrete:
        raise TypeError(
            f"sample: reparameterize needs real-valued samples, got a {type(mixture).__name__} of "
            f"class indices; use the score function, or its probabilities."
        )
    return _sample(key, mixture, shape, return_index, reparameterize)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _sample(
    key: Array, mixture: Any, shape: tuple[int, ...], return_index: bool, reparameterize: bool
) -> Any:
    if isinstance(mixture, Mixture):
        draws, index = mixture.sample_with_index(key, shape)
    else:
        draws, index = mixture.sample(key, shape), None
    if reparameterize:
        draws = reattach(mixture, jax.lax.stop_gradient(draws))
    return (draws, index) if return_index else draws
