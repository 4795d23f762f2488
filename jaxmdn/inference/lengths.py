"""Densities with respect to length: what regions and modes do about atoms and circles.

A point of positive probability has no length, so that its density is infinite: it is the first to
enter a region. What is left without the atoms is a density again. On a circle the order is that of
the representatives in ``[-pi, pi]``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxmdn import numerics
from jaxmdn.components import Independent
from jaxmdn.components.base import Density
from jaxmdn.mixture import Mixture, require_mixture
from jaxmdn.mixture.class_conditional import flatten_mixture
from jaxmdn.special.circular import TURN, representative
from jaxmdn.typing import Array, Bool, Float


def require_continuous(function: str, mixture: Any) -> None:
    """Raise ``TypeError`` unless ``mixture`` is a mixture over real numbers or angles."""
    require_mixture(function, mixture)
    _require_lengths(function, mixture)


def require_regions(function: str, density: Any) -> None:
    """As :func:`require_continuous`, but independent mixtures will do."""
    if not isinstance(density, Independent):
        require_mixture(function, density)
    _require_lengths(function, density)


def _require_lengths(function: str, density: Any) -> None:
    if density.discrete:
        kind = type(getattr(density, "components", density)).__name__
        raise TypeError(f"{function}: needs a density over real numbers, got a mixture of {kind}.")


def plain(mixture: Any, other: Array) -> Any:
    """A mixture of plain (for D = 1, univariate) components, and its companion, upcast alike."""
    mixture, other = numerics.upcast_tree(mixture, other)
    if isinstance(mixture, Independent):
        return mixture, other
    flat = flatten_mixture(mixture)
    return flat.marginals() if flat.event_dim == 1 else flat, other


def on_atom(mixture: Density, y: Float[Array, "... D"]) -> Bool[Array, "..."]:
    """Whether some dimension of ``y`` is a value of positive probability."""
    found = jnp.zeros(y.shape[:-1], bool)
    for d, own in enumerate(mixture.support):
        for atom in own.atoms:
            found = found | (y[..., d] == atom)
    return found


def log_density(mixture: Density, y: Float[Array, "... D"]) -> Float[Array, "..."]:
    """Log-density with respect to length: ``inf`` on atoms."""
    value = mixture.log_prob(y)
    if not any(own.atoms for own in mixture.support):
        return value
    return jnp.where(on_atom(mixture, y) & (value > -jnp.inf), jnp.inf, value)


class Continuum(NamedTuple):
    """A density of one dimension without its atoms.

    Attributes:
      mixture: the rest, normalised.
      log_share: the logarithm of its probability, ``[...]``.
      atoms: the atoms, numbers.
    """

    mixture: Mixture
    log_share: Float[Array, "..."]
    atoms: tuple[float, ...]

    def level(self, level: Float[Array, "..."]) -> Float[Array, "..."]:
        """The rest's own level where all atoms are inside; zero or below where they are enough."""
        return 1 - (1 - level) * jnp.exp(-self.log_share)

    def whole(self, level: Float[Array, "..."]) -> Float[Array, "..."]:
        """The inverse of :meth:`level`."""
        return 1 - (1 - level) * jnp.exp(self.log_share)


def without_atoms(mixture: Mixture) -> Continuum:
    """Split a mixture of plain components of one dimension."""
    atoms = mixture.support[0].atoms
    if not atoms:
        return Continuum(mixture, jnp.zeros((), mixture.dtype), ())
    log_share, components = mixture.components.without_atoms()
    joint = mixture.log_weights() + log_share[..., 0]  # [..., K]
    total = numerics.logsumexp(joint)
    # Where nothing is left there is no density of it: any weights will do.
    rest = Mixture(
        logits=jnp.where(jnp.isneginf(total)[..., None], 0, joint), components=components
    )
    return Continuum(rest, total, atoms)


def on_circle(mixture: Mixture) -> bool:
    """Whether a density of one dimension is one of angles."""
    return mixture.support[0].kind == "circle"


def cumulated(mixture: Mixture, y: Float[Array, "..."]) -> Float[Array, "..."]:
    """``P(Y <= y)`` of one dimension, which on a circle grows by one with every turn."""
    if not on_circle(mixture):
        return mixture.cdf(y[..., None])[..., 0]
    near = representative(y)
    return mixture.cdf(near[..., None])[..., 0] + jnp.round(y / TURN)
