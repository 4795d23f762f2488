"""Densities of several outputs as a product of univariate conditionals.

``p(y | x) = prod_d p_d(y_d | x, y_parents(d))``: every conditional is a mixture of its own, so that
the joint density is as flexible as one-dimensional ones are, and a graph says which outputs depend
on which. What it costs: moments and marginals have no closed form, and sampling takes a forward
pass per generation of the graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmdn import checks, losses, meshes
from jaxmdn.heads import Head, from_config, initializers, to_config
from jaxmdn.heads.graph import Graph
from jaxmdn.losses.reductions import REDUCTIONS, check_rows, kept_rows, reduce, silence
from jaxmdn.mixture import check_target
from jaxmdn.nn.conditionals import AutoregressiveDensity
from jaxmdn.nn.masked import MaskedLinear, MaskedNetwork
from jaxmdn.nn.network import Network, dtype_name, named
from jaxmdn.nn.outputs import AutoregressiveHead
from jaxmdn.typing import Array, ArrayLike, Float, Key, Num


class AutoregressiveMDN(Network):
    """Univariate mixture density networks for several outputs, tied by a directed graph.

    ``p(y | x) = prod_d p_d(y_d | x, y_parents(d))``, all conditionals by one masked network: the
    likelihood of all outputs is one forward pass. No graph (the chain rule in the order of the
    outputs) assumes nothing; an edge left out is an independence assumed.

    Args:
      in_features: number of input features.
      heads: a univariate head per output (of any family, class indices included), or a single head
        for every output of the graph.
      graph: each output's parents, such as ``((), (0,), (0, 1))``; see :mod:`jaxmdn.heads.graph`.
        ``jaxmdn.heads.graph.independent(D)`` shares nothing but the network.
      hidden_features: width of each layer, at least the number of distinct sets of parents.
      activation: a name in ``jaxmdn.nn.ACTIVATIONS``, or a function (see
        :class:`jaxmdn.nn.Network`).
      kernel_scale: standard deviation of the initial raw outputs; small, so that every input
        starts near the density in the bias. Default 0.1.
      dtype: of the operands of the matrix products, such as ``"bfloat16"``; raw outputs and all
        that is computed from them are float32 at least.
      param_dtype: of the parameters.
      rngs: NNX random streams (``params``).

    Raises:
      ValueError, TypeError: on impossible configuration: a graph with a cycle, a head of more than
        one dimension, a layer too narrow for the graph (naming the smallest width).

    Limits: sampling takes one forward pass per generation of the graph (D for the chain rule). A
    class index is fed to the network one-hot, other values as they are: standardise them, as
    ``fit`` does.

    >>> import jax, jax.numpy as jnp, jaxmdn
    >>> from flax import nnx
    >>> graph = ((), (0,), (0,))  # outputs 1 and 2 are independent given output 0
    >>> model = jaxmdn.nn.AutoregressiveMDN(4, jaxmdn.NormalHead(5), graph=graph, rngs=nnx.Rngs(0))
    >>> density = model(jnp.zeros((8, 4)))
    >>> jaxmdn.log_prob(density, jnp.zeros((8, 3))).shape
    (8,)
    >>> jaxmdn.sample(jax.random.key(0), density, (10,)).shape
    (10, 8, 3)

    References:
      Germain et al. (2015), MADE; Uria, Murray and Larochelle (2013), RNADE: the real-valued
      neural autoregressive density-estimator, eq. 3-6.
    """

    def __init__(
        self,
        in_features: int,
        heads: Head | Sequence[Head],
        *,
        graph: Sequence[Sequence[SupportsIndex]] | None = None,
        hidden_features: Sequence[int] = (64, 64),
        activation: str | Callable[[Array], Array] = "silu",
        kernel_scale: float = 0.1,
        dtype: Any = None,
        param_dtype: Any = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        name = "AutoregressiveMDN"
        checks.require_count(name, "in_features", in_features)
        for width in hidden_features:
            checks.require_count(name, "hidden_features", width)
        activation = named(name, activation)
        checks.require_number(name, "kernel_scale", kernel_scale, lower=0.0)
        head = AutoregressiveHead(heads, graph=graph)
        dtype, param_dtype = dtype_name(name, dtype), dtype_name(name, param_dtype)
        self.network = MaskedNetwork(in_features, head, tuple(hidden_features), activation, dtype)
        masks = self.network.masks
        scales = [1.0] * (len(masks) - 1) + [kernel_scale]
        layers = [
            MaskedLinear(mask, scale=scale, param_dtype=param_dtype, rngs=rngs)
            for mask, scale in zip(masks, scales, strict=True)
        ]
        self.layers = nnx.List(layers)
        self.arguments = (
            ("in_features", in_features),
            ("graph", head.graph),
            ("hidden_features", tuple(hidden_features)),
            ("activation", activation),
            ("kernel_scale", kernel_scale),
            ("dtype", dtype),
            ("param_dtype", param_dtype),
        )

    @property
    def head(self) -> AutoregressiveHead:
        """The outputs' heads and their graph (static); heads of the same kinds may be set."""
        return self.network.head

    @head.setter
    def head(self, head: AutoregressiveHead) -> None:
        # Outputs with equal heads lie side by side: where that changes, so do the last columns.
        moved = self.head.columns[np.argsort(head.columns)]
        self.network = dataclasses.replace(self.network, head=head)
        last = self.layers[-1]
        last.kernel[...], last.bias[...] = last.kernel[...][:, moved], last.bias[...][moved]

    @property
    def graph(self) -> Graph:
        """Each output's parents."""
        return self.network.head.graph

    @property
    def params(self) -> tuple[tuple[Array, Array], ...]:
        """``(kernel, bias)`` of every layer, as arrays."""
        return tuple((layer.kernel[...], layer.bias[...]) for layer in self.layers)

    def __call__(self, x: Float[ArrayLike, "... F"]) -> AutoregressiveDensity:
        return AutoregressiveDensity(network=self.network, params=self.params, x=self._inputs(x))

    def _inputs(self, x: Any) -> Array:
        x = jnp.asarray(x)
        width = self.network.in_features
        checks.require_last_axis("AutoregressiveMDN", "x", x, width, "input features")
        return x

    def conditionals(
        self, x: Float[ArrayLike, "... F"], y: Num[ArrayLike, "... D"]
    ) -> tuple[Any, ...]:
        """Each output's density given ``x`` and its parents; see the density's own method."""
        return self(x).conditionals(y)

    def nll(
        self,
        x: Float[ArrayLike, "... F"],
        y: Num[ArrayLike, "... D"],
        *,
        weights: Float[ArrayLike, "..."] | None = None,
        mask: Any = None,
        reduction: str = "mean",
    ) -> Float[Array, "..."]:
        """Negative log-likelihood of ``y`` given ``x``, in nats.

        Args:
          x: inputs ``[..., F]``.
          y: targets ``[..., D]``.
          weights: nonnegative row weights ``[...]``, as in :func:`jaxmdn.nll`.
          mask: boolean ``[..., D]``, False where an output is missing (whatever ``y`` holds there,
            NaN included), or ``[...]``, False where a row is. A row counts if some output of it is
            observed. Missing outputs are integrated out exactly, which takes that their children
            are missing, too.
          reduction: ``"mean"``, ``"sum"`` or ``"none"``, as in :func:`jaxmdn.nll`.

        Raises:
          ValueError: on wrong shapes, or if the mask leaves out an output with an observed child:
            that density has no closed form. A traced mask gives NaN for such rows (weight zero
            excepted). TypeError: on wrong dtypes.
        """
        name = "AutoregressiveMDN.nll"
        checks.require_option(name, "reduction", reduction, REDUCTIONS)
        density, y = self(x), jnp.asarray(y)
        check_target(name, density, y)
        batch = jnp.broadcast_shapes(density.batch_shape, y.shape[:-1])
        weights = None if weights is None else jnp.asarray(weights)
        if mask is not None:
            checks.require_array(name, "mask", mask)
            if not isinstance(mask, jax.core.Tracer) and getattr(
                mask, "is_fully_addressable", True
            ):
                mask = np.asarray(mask)
            whole = (*batch, density.event_dim)
            check_rows(name, batch if mask.ndim == len(batch) else whole, None, mask)
            if mask.ndim == len(batch):
                mask = mask[..., None] & np.ones(density.event_dim, bool)
            if isinstance(mask, np.ndarray):
                _require_closed(name, self.graph, mask, weights)
            mask = jnp.asarray(mask)
        check_rows(name, batch, weights, None)
        return _nll(density, y, weights, mask, reduction)

    def initialize(
        self, key: Key[Array, ""], y: Any, *, weights: Float[ArrayLike, "N"] | None = None
    ) -> None:
        """Set the bias so that every conditional starts as its output's marginal, in place.

        See :func:`jaxmdn.heads.initializers.from_targets`; ``y [N, D]``.
        """
        checks.require_last_axis("initialize", "y", y, self.head.event_dim, "event dimension D")
        bias = self.layers[-1].bias
        start = jnp.zeros_like(bias[...])
        keys = jax.random.split(key, self.head.event_dim)
        for d, (head, columns) in enumerate(zip(self.head.heads, self.head.slices, strict=True)):
            part = initializers.from_targets(keys[d], head, y[:, d : d + 1], weights=weights)
            start = start.at[columns].set(part.astype(start.dtype))
        bias[...] = start

    @property
    def heads(self) -> dict[str, Any]:
        return {"heads": self.head.heads}

    def config(self) -> dict[str, Any]:
        return {**self.description(), "heads": [to_config(head) for head in self.head.heads]}

    @classmethod
    def from_config(cls, config: dict[str, Any], *, rngs: nnx.Rngs) -> AutoregressiveMDN:
        """Build the network that :meth:`config` describes, with fresh parameters."""
        arguments = dict(config)
        heads = [from_config(head) for head in arguments.pop("heads")]
        return cls(heads=heads, **arguments, rngs=rngs)


def _open_outputs(graph: Graph, observed: Any) -> list[tuple[int, int, Any]]:
    """``(parent, child, rows)`` of every edge, with the rows where the parent alone is missing."""
    return [
        (parent, child, ~observed[..., parent] & observed[..., child])
        for child, parents in enumerate(graph)
        for parent in parents
    ]


def _require_closed(function: str, graph: Graph, mask: np.ndarray, weights: Any) -> None:
    """Raise for a missing output with an observed child."""
    observed = mask
    if weights is not None and not isinstance(weights, jax.core.Tracer):
        observed = observed & (np.asarray(weights) != 0)[..., None]
    for parent, child, rows in _open_outputs(graph, observed):
        if rows.any():
            row = tuple(int(i) for i in np.argwhere(rows)[0])
            raise ValueError(
                f"{function}: mask leaves out output {parent} of row {row}, but not output "
                f"{child}, which depends on it: their density has no closed form then. Leave out "
                f"output {child} as well, or choose a graph in which output {parent} has no "
                f"children."
            )


@partial(meshes.jit, static_argnames="reduction")
def _nll(
    density: AutoregressiveDensity, y: Array, weights: Any, mask: Any, reduction: str
) -> Float[Array, "..."]:
    network, x = density.network, density.x
    rows = None if mask is None else jnp.any(mask, axis=-1)
    kept = kept_rows(weights, rows)
    masks: tuple[Array, ...] = ()
    if kept is not None:
        x = silence(jnp.broadcast_to(x, (*kept.shape, x.shape[-1])), kept)
        y = silence(silence(jnp.broadcast_to(y, (*kept.shape, y.shape[-1])), kept), mask)
        each_kept = jnp.broadcast_to(kept[..., None], y.shape)
        masks = (each_kept if mask is None else each_kept & mask,)

    def each(head: Head, raw: Array, y: Array, mask: Array | None = None) -> Array:
        return losses.nll(head, raw, y[..., None], mask=mask, reduction="none")

    raw = network.raw(density.params, x, y)
    values = jnp.sum(network.head.each(each, raw, y, *masks), axis=-1)  # [..., D] -> [...]
    if masks:
        lost = jnp.zeros(values.shape, bool)
        for _, _, unknown in _open_outputs(network.head.graph, masks[0]):
            lost = lost | unknown
        values = values * jnp.where(lost, jnp.nan, jnp.ones_like(values))  # its gradient is NaN too
    return reduce(values, weights, rows, reduction)
