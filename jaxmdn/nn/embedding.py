"""Numbers as a network likes them: every input feature written out in a few learnt waves.

A perceptron is slow to learn a function that turns quickly within one feature. Given the feature's
sine waves of several frequencies beside the feature itself, it learns it at once.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmdn import checks, numerics
from jaxmdn.special.waves import cos_turns
from jaxmdn.typing import Array, ArrayLike, Float


class PeriodicEmbedding(nnx.Module):
    """Each feature beside a few mixtures of its waves: ``[..., F] -> [..., F (1 + E)]``.

    For every feature ``x_f`` by itself::

        z_f = [x_f, W_f cos(2 pi x_f frequency_f + phase_f) + b_f],

    with learnt frequencies and phases ``[M]``, ``W_f [E, M]``, ``b_f [E]``.

    Args:
      in_features: F.
      frequency_scale: standard deviation of the initial frequencies, in waves per unit of the
        input; standardised inputs do well between 0.1 (smooth) and 1 (rough).
      num_frequencies: M.
      features: E.
      param_dtype: of the parameters; what is computed is float32 at least.
      rngs: NNX random streams (``params``).

    >>> import jax.numpy as jnp, jaxmdn
    >>> from flax import nnx
    >>> embedding = jaxmdn.nn.PeriodicEmbedding(5, rngs=nnx.Rngs(0))
    >>> embedding(jnp.zeros((8, 5))).shape, embedding.out_features
    ((8, 20), 20)

    References:
      Gorishniy, Rubachev and Babenko (2022), On embeddings for numerical features in tabular deep
      learning, eq. 2; Holzmüller, Grinsztajn and Steinwart (2024), Better by default, appendix A
      (one cosine with a phase, and the feature beside it).
    """

    def __init__(
        self,
        in_features: int,
        *,
        frequency_scale: float = 0.2,
        num_frequencies: int = 16,
        features: int = 3,
        param_dtype: Any = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        name = "PeriodicEmbedding"
        checks.require_count(name, "in_features", in_features)
        checks.require_count(name, "num_frequencies", num_frequencies)
        checks.require_count(name, "features", features)
        checks.require_number(name, "frequency_scale", frequency_scale, lower=0.0)
        self.in_features = in_features
        self.out_features = in_features * (1 + features)
        waves = (in_features, num_frequencies)
        key = rngs.params
        frequency = frequency_scale * jax.random.normal(key(), waves, jnp.float32)
        phase = jax.random.uniform(key(), waves, jnp.float32, -math.pi, math.pi)
        scale = num_frequencies**-0.5
        kernel = scale * jax.random.normal(key(), (*waves, features), jnp.float32)
        self.frequency = nnx.Param(frequency.astype(param_dtype))
        self.phase = nnx.Param(phase.astype(param_dtype))
        self.kernel = nnx.Param(kernel.astype(param_dtype))
        self.bias = nnx.Param(jnp.zeros((in_features, features), param_dtype))

    def __call__(self, x: Float[ArrayLike, "... F"]) -> Float[Array, "... E"]:
        x = jnp.asarray(x)
        checks.require_last_axis("PeriodicEmbedding", "x", x, self.in_features, "input features")
        own = (self.frequency[...], self.phase[...], self.kernel[...], self.bias[...])
        x, frequency, phase, kernel, bias = numerics.upcast(x, *map(jnp.asarray, own))
        turns = x[..., None] * frequency + phase / (2 * math.pi)
        waves = cos_turns(turns)  # [..., F, M]
        mixed = jnp.einsum("...fm,fme->...fe", waves, kernel) + bias
        embedded = jnp.concatenate([x[..., None], mixed], axis=-1)
        return embedded.reshape(*x.shape[:-1], self.out_features)
