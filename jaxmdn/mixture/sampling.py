"""Drawing from a mixture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmdn import checks, meshes
from jaxmdn.components.base import Density
from jaxmdn.mixture.mixture import Mixture
from jaxmdn.mixture.sequential import reattach
from jaxmdn.typing import Array, Float, Key, Num

#: How many samples an estimate takes unless told otherwise.
NUM_SAMPLES = 1000


class Draws(NamedTuple):
    """Samples and where they came from.

    Attributes:
      value: ``shape + [..., D]``.
      component: the component of each, ``shape + [...]``, ``int32``.
    """

    value: Array
    component: Array


class Estimate(NamedTuple):
    """A Monte Carlo estimate and its standard error.

    Attributes:
      value: ``[...]``.
      standard_error: ``[...]``; zero where the value is exact, NaN where too few samples tell.
    """

    value: Float[Array, "..."]
    standard_error: Float[Array, "..."]


def sample(
    key: Key[Array, ""],
    density: Density,
    shape: int | Sequence[int] = (),
    *,
    return_index: bool = False,
    reparameterize: bool = False,
) -> Num[Array, "..."] | Draws:
    """Draw independent samples.

    The component is drawn by inverting the cdf of one uniform number, then that component alone is
    gathered and sampled: K-fold work and memory never arise, nor does ``0 * inf``.

    Args:
      key: a typed key, ``jax.random.key(seed)``.
      density: a density with batch shape ``[...]``.
      shape: sample shape, put in front: a number or several (static).
      return_index: also return the component each draw came from (static).
      reparameterize: make the same samples differentiable in every parameter, the weights included
        (static).

    Returns:
      Samples ``shape + [..., D]`` in the parameters' dtype; with ``return_index``, :class:`Draws`.
      The samples are differentiable with respect to the chosen
      component's parameters, not with respect to the weights. With ``reparameterize`` they are
      differentiable in both, so that the derivative of ``mean(f(sample))`` is an unbiased estimate
      of that of ``E[f(Y)]``: each sample moves as the point whose conditional probabilities
      ``F(y_d | y_<d)`` stay as they are. The index has no derivative.

    Raises:
      TypeError: if ``density`` is no density, if ``return_index`` meets one without components, or
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
    if not isinstance(density, Density):
        raise TypeError(
            f"sample: expected a density, got {type(density).__name__}; the order is "
            f"sample(key, mixture, shape)."
        )
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    for size in shape:
        checks.require_count("sample", "shape", size, minimum=0)
    if return_index and not isinstance(density, Mixture):
        raise TypeError(
            f"sample: return_index needs a Mixture, got {type(density).__name__}, which has no "
            f"components to choose from."
        )
    if reparameterize and density.discrete:
        raise TypeError(
            f"sample: reparameterize needs real-valued samples, got a {type(density).__name__} of "
            f"class indices; use the score function, or its probabilities."
        )
    return _sample(key, density, shape, return_index, reparameterize)


@partial(meshes.jit, static_argnums=(2, 3, 4))
def _sample(
    key: Array, density: Any, shape: tuple[int, ...], return_index: bool, reparameterize: bool
) -> Any:
    if isinstance(density, Mixture):
        draws = Draws(*density.sample_with_index(key, shape))
    else:
        draws = Draws(density.sample(key, shape), jnp.zeros(()))
    if reparameterize:
        draws = draws._replace(value=reattach(density, jax.lax.stop_gradient(draws.value)))
    return draws if return_index else draws.value
