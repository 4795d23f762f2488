"""Made-up data whose exact conditional density is known: a yardstick."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmdn import meshes, numerics
from jaxmdn.typing import Array, Float, Key


class InverseProblem(NamedTuple):
    """Bishop's inverse problem: the input is a noisy function of the target.

    ``t ~ Uniform(0, 1)``, ``x = t + 0.3 sin(2 pi t) + noise``, ``noise ~ N(0, noise_scale^2)``;
    asked is ``p(t | x)``, which has up to three branches. (Bishop's noise is uniform; with a normal
    one the exact conditional density is smooth and known by quadrature.)

    >>> import jax
    >>> problem = InverseProblem(noise_scale=0.05)
    >>> x, t = problem.sample(jax.random.key(0), 3)
    >>> x.shape, t.shape
    ((3, 1), (3, 1))

    References:
      Bishop (1994), Mixture Density Networks, section 5 and eq. 50.
    """

    noise_scale: float = 0.05

    def forward(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """The noiseless input of a target."""
        return t + 0.3 * jnp.sin(2.0 * jnp.pi * t)

    def sample(
        self, key: Key[Array, ""], count: int
    ) -> tuple[Float[Array, "N 1"], Float[Array, "N 1"]]:
        """Draw ``count`` pairs of input ``x [N, 1]`` and target ``t [N, 1]``."""
        key_target, key_noise = jax.random.split(key)
        t = jax.random.uniform(key_target, (count, 1))
        noise = self.noise_scale * jax.random.normal(key_noise, (count, 1))
        return self.forward(t) + noise, t

    def log_prob(
        self, x: Float[Array, "N 1"], t: Float[Array, "N 1"], *, num_nodes: int = 4001
    ) -> Float[Array, "N"]:
        """Exact ``log p(t | x)``, ``[N]``, nats: Bayes' rule, its integral by Simpson's rule."""
        return _inverse_log_prob(self, x, t, num_nodes)


@partial(meshes.jit, static_argnums=(0, 3))
def _inverse_log_prob(problem: InverseProblem, x: Array, t: Array, num_nodes: int) -> Array:
    nodes = jnp.linspace(0.0, 1.0, num_nodes, dtype=x.dtype)
    simpson = jnp.where(jnp.arange(num_nodes) % 2 == 1, 4.0, 2.0).at[jnp.array([0, -1])].set(1.0)
    log_weights = jnp.log(simpson.astype(x.dtype) / (3.0 * (num_nodes - 1)))

    def log_likelihood(t: Array, x: Array) -> Array:
        return -0.5 * ((x - problem.forward(t)) / problem.noise_scale) ** 2

    def one(row: tuple[Array, Array]) -> Array:
        x, t = row
        evidence = numerics.logsumexp(log_likelihood(nodes, x) + log_weights)
        inside = (t >= 0.0) & (t <= 1.0)
        return jnp.where(inside, log_likelihood(t, x) - evidence, -jnp.inf)

    return jax.lax.map(one, (x[:, 0], t[:, 0]), batch_size=256)
