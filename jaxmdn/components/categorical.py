"""The categorical distribution: softmax classification as a density with integer targets."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmdn import numerics
from jaxmdn.components.base import Density
from jaxmdn.components.declare import family, parameter
from jaxmdn.components.support import Support
from jaxmdn.typing import Array, Float, Int, Key, Num, Parameter


@family
class Categorical(Density):
    """``p(y = c) = softmax(logits)_c`` for a class index ``y [..., 1]``.

    Attributes:
      logits: unnormalised log-probabilities, ``[..., C]``.

    A class index outside ``0 .. C - 1``, or one that is not whole, has log-probability ``-inf``.
    The classes have no order, so there is no mean, variance or cdf; see :meth:`probabilities`.
    """

    logits: Parameter = parameter()

    @property
    def domain(self) -> Support:  # type: ignore[override]
        return Support("classes", 0.0, self.num_classes - 1.0, step=1.0)

    @property
    def num_classes(self) -> int:
        return self.logits.shape[-1]

    def log_prob(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        (logits,) = numerics.upcast(self.logits)
        shifted, log_total = numerics.log_normalizer(logits)
        index, valid = _class_index(y[..., 0], self.num_classes)
        picked = numerics.take_along(shifted, index, -1)
        return jnp.where(valid, picked - log_total[..., 0], -jnp.inf)

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Int[Array, "..."]:
        return draw_index(key, self.logits, (*shape, *self.batch_shape))[..., None]

    def marginal_log_prob(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        return self.log_prob(y)[..., None]

    def given_before(self, y: Num[Array, "..."]) -> tuple[Density, Num[Array, "..."]]:
        return self, y

    def jump(self, y: Num[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """The classes taken in the order of their indices."""
        probabilities = self.probabilities()
        index = jnp.arange(self.num_classes, dtype=y.dtype)
        below = jnp.sum(jnp.where(index < y, probabilities, 0), axis=-1, keepdims=True)
        at = jnp.sum(jnp.where(index == y, probabilities, 0), axis=-1, keepdims=True)
        return jnp.where(jnp.isnan(y), jnp.nan, below), at

    def probabilities(self) -> Float[Array, "..."]:
        """Class probabilities, ``[..., C]``."""
        return jnp.exp(numerics.log_normalize(self.logits))


def gather_class(
    log_values: Float[Array, "... C"], label: Num[Array, "..."]
) -> Float[Array, "..."]:
    """Pick ``log_values[label]`` along the last axis; ``-inf`` where there is no such class."""
    index, valid = _class_index(label, log_values.shape[-1])
    return jnp.where(valid, numerics.take_along(log_values, index, -1), -jnp.inf)


def _class_index(label: Num[Array, "..."], count: int) -> tuple[Array, Array]:
    """The index of a class, or 0, and whether there is such a class."""
    index = label.astype(jnp.int32)
    valid = (index >= 0) & (index < count) & (index.astype(label.dtype) == label)
    return jnp.where(valid, index, 0), valid


def draw_index(
    key: Key[Array, ""], logits: Float[Array, "... K"], shape: tuple[int, ...]
) -> Int[Array, "..."]:
    """Draw category indices by inverting the cdf of one uniform number each.

    The draw is the number of categories whose cumulated weight does not exceed the uniform number.
    The cumulated weights are made monotone (a parallel sum may be rounded otherwise), flat at a
    weight of zero, and end at exactly one, so that an index of ``K``, or a category of weight zero,
    cannot be drawn. Weights below 1e-7 are drawn with the resolution of the uniform generator.
    Where every weight is zero the index is 0.
    """
    (logits,) = numerics.upcast(logits)
    weights = jnp.exp(numerics.log_normalize(logits))
    cumulated = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), 0)
    cumulated = jax.lax.cummax(cumulated, axis=cumulated.ndim - 1)
    cumulated = cumulated / cumulated[..., -1:]  # NaN, above nothing, where every weight is zero
    uniform = jax.random.uniform(key, shape, cumulated.dtype)
    # Counting is one vectorised pass; an argmax is ten times slower on CPU.
    return jnp.sum((uniform[..., None] >= cumulated).astype(jnp.int32), axis=-1, dtype=jnp.int32)
