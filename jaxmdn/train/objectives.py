"""Objectives for ``fit``: pure functions of ``(head, raw, y)`` and scores, as losses of a model."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn.inference.cells import cell_log_prob
from jaxmdn.losses.objectives import beta_nll, winner_takes_all
from jaxmdn.losses.reductions import reduce
from jaxmdn.typing import Array, Key


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss of :func:`jaxmdn.train.fit`; two with the same content share compiled programs.

    Attributes:
      function: of ``(head, raw, y)``, or of ``(density, y)``, perhaps with a key before.
      options: keyword arguments, as sorted pairs.
      of_density: which of the two.
      takes_key: whether a key comes first.
      surrogate: whether its value means nothing, only its gradient does: validation is by the NLL.
      x_noise, y_noise: standard deviations of noise added to standardised inputs and targets, drawn
        afresh in every step; none in validation.
    """

    function: Callable[..., Any]
    options: tuple[tuple[str, Any], ...]
    of_density: bool
    takes_key: bool
    surrogate: bool
    x_noise: float = 0.0
    y_noise: float = 0.0

    @property
    def clean(self) -> Objective:
        """The same without noise: what validation uses."""
        return dataclasses.replace(self, x_noise=0.0, y_noise=0.0)

    def __call__(self, model: Any, x: Any, y: Any, weights: Array, key: Key[Array, ""]) -> Array:
        key_x, key_y, key = jax.random.split(key, 3)
        x = add_noise(key_x, x, self.x_noise)
        y = add_noise(key_y, y, self.y_noise)
        first = (key,) if self.takes_key else ()
        options = dict(self.options)
        if not self.of_density:
            raw = model.raw(x)
            return self.function(*first, model.head, raw, y, weights=weights, **options)
        found = self.function(*first, model(x), y, **options)
        found = getattr(found, "value", found)  # of a Monte Carlo estimate
        found = found.reshape(*weights.shape, -1).sum(axis=-1)  # of [N] or [N, D]
        return jnp.sum(weights * found) / jnp.sum(weights)


@dataclasses.dataclass(frozen=True)
class CellLoss:
    """The loss of targets on a grid: minus the log-probability of their cells.

    Attributes:
      width: of the cells, in standardised units, a number for each output.
    """

    width: tuple[float, ...]

    def __call__(self, model: Any, x: Any, y: Any, weights: Array, key: Key[Array, ""]) -> Array:
        log_prob = cell_log_prob(model(x), y, np.asarray(self.width, np.float32))
        return reduce(-log_prob, weights, None, "mean")


def objective(
    function: Callable[..., Any], *, x_noise: float = 0.0, y_noise: float = 0.0, **options: Any
) -> Objective:
    """Make a loss for :func:`jaxmdn.train.fit` of a function of ``(head, raw, y)`` or a score.

    It is minimised. Inside ``fit`` targets are standardised (``standardize_y=True``), and so is
    whatever has their unit: widths of cells, rates of scale penalties.

    Args:
      function: such as ``jaxmdn.losses.beta_nll``, ``jaxmdn.nll``, its first argument named
        ``head``; or of ``(density, y)`` such as ``jaxmdn.crps``; with a ``key`` first where it
        draws, such as ``jaxmdn.energy_score``.
      x_noise, y_noise: standard deviations of normal noise on inputs and targets, in standardised
        units, drawn afresh in every step (Rothfuss et al. 2019, Noise regularization for
        conditional density estimation, eq. 6): a smoothness penalty.
      options: further keyword arguments of ``function``; hashable.

    >>> import jax.numpy as jnp, jaxmdn
    >>> from flax import nnx
    >>> loss = jaxmdn.train.objective(jaxmdn.losses.beta_nll, beta=0.5)
    >>> x = jnp.linspace(-1, 1, 64)[:, None]
    >>> model = jaxmdn.nn.MDN(1, jaxmdn.NormalHead(1, 1), hidden_features=(8,), rngs=nnx.Rngs(0))
    >>> result = jaxmdn.train.fit(model, x, 3.0 * x, loss=loss, num_epochs=2, progress=False)
    >>> sorted(name for name in result.history if name.endswith(("loss", "nll")))
    ['train_loss', 'valid_loss', 'valid_nll']
    """
    try:
        hash(tuple(options.values()))
    except TypeError:
        raise TypeError(
            "objective: options must be hashable: Python numbers, strings or tuples, not arrays; "
            f"got {', '.join(f'{name}={value!r}' for name, value in options.items())}."
        ) from None
    names = list(inspect.signature(function).parameters)
    takes_key = names[0] == "key"
    of_density = names[int(takes_key)] != "head"
    pairs = tuple(sorted(options.items()))
    surrogate = function in (beta_nll, winner_takes_all)
    return Objective(function, pairs, of_density, takes_key, surrogate, x_noise, y_noise)


def add_noise(key: Key[Array, ""], tree: Any, scale: float) -> Any:
    """Add normal noise to the floating arrays of a pytree; the rest, and ``scale = 0``, stay."""
    if scale == 0.0:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        leaf + scale * jax.random.normal(k, leaf.shape, leaf.dtype)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
        else leaf
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)
