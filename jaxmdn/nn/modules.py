"""The multilayer perceptron, the output layer, and the two together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmdn import checks, losses
from jaxmdn.components.base import Density
from jaxmdn.heads import Head, from_config, initializers, to_config
from jaxmdn.losses.kernels.linear import Layer, raw_outputs
from jaxmdn.nn.embedding import PeriodicEmbedding
from jaxmdn.nn.network import Network, activate, dtype_name, named
from jaxmdn.typing import Array, ArrayLike, Float, Key


class MLP(nnx.Module):
    """A multilayer perceptron without an output layer: ``[..., F] -> [..., H]``.

    Args:
      in_features: F.
      hidden_features: width of each layer; the last is H.
      activation: a name in ``jaxmdn.nn.ACTIVATIONS``, or a function (see :class:`Network`).
      dropout: share of the units dropped after each layer, in training mode only.
      embedding: ``frequency_scale`` of a :class:`PeriodicEmbedding` of the inputs (in the
        parameters' dtype); None: they are taken as they are.
      dtype: in which the layers compute, such as ``"bfloat16"``; None: that of inputs and
        parameters.
      param_dtype: of the parameters.
      rngs: NNX random streams (``params``, and ``dropout`` where used).
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: Sequence[int] = (64, 64),
        *,
        activation: str | Callable[[Array], Array] = "silu",
        dropout: float = 0.0,
        embedding: float | None = None,
        dtype: Any = None,
        param_dtype: Any = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        checks.require_count("MLP", "in_features", in_features)
        for width in hidden_features:
            checks.require_count("MLP", "hidden_features", width)
        checks.require_number("MLP", "dropout", dropout, lower=0.0, upper=1.0)
        dtype, param_dtype = dtype_name("MLP", dtype), dtype_name("MLP", param_dtype)
        self.in_features = in_features
        self.activation = named("MLP", activation)
        self.embedding = None
        widths = [in_features, *hidden_features]
        if embedding is not None:
            waves = PeriodicEmbedding(
                in_features, frequency_scale=embedding, param_dtype=param_dtype, rngs=rngs
            )
            self.embedding = nnx.data(waves)
            widths[0] = waves.out_features
        self.out_features = widths[-1]
        self.layers = nnx.List(
            nnx.Linear(width, following, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
            for width, following in itertools.pairwise(widths)
        )
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None

    def __call__(self, x: Float[ArrayLike, "... F"]) -> Float[Array, "... H"]:
        hidden = jnp.asarray(x)
        checks.require_last_axis("MLP", "x", hidden, self.in_features, "input features")
        if self.embedding is not None:
            hidden = self.embedding(hidden)
        for layer in self.layers:
            hidden = activate(self.activation, layer(hidden))
            if self.dropout is not None:
                hidden = self.dropout(hidden)
        return hidden


def _is_plain(linear: Any) -> bool:
    """Whether a layer is ``hidden @ kernel + bias`` and nothing else."""
    return (
        type(linear) is nnx.Linear
        and linear.bias is not None
        and linear.dot_general is jax.lax.dot_general
        and linear.preferred_element_type is None
    )


class MDNHead(nnx.Module):
    """An output layer for any trunk: hidden features ``[..., H]`` to a density of shape ``[...]``.

    Args:
      in_features: H, the width of the trunk's last layer.
      head: a jaxmdn head (static).
      kernel_scale: standard deviation of the initial raw outputs for hidden features of unit size;
        small, so that every input starts near the density in the bias. Default 0.1.
      dtype: of the operands of the matrix product, as in :class:`MLP`; raw outputs and all that is
        computed from them are float32 at least.
      param_dtype: of the parameters.
      rngs: NNX random streams (``params``).

    >>> import jax, jax.numpy as jnp, jaxmdn
    >>> from flax import nnx
    >>> layer = jaxmdn.nn.MDNHead(16, jaxmdn.NormalHead(3, 2), rngs=nnx.Rngs(0))
    >>> layer(jnp.zeros((5, 16))).batch_shape
    (5,)
    """

    def __init__(
        self,
        in_features: int,
        head: Head,
        *,
        kernel_scale: float = 0.1,
        dtype: Any = None,
        param_dtype: Any = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        checks.require_count("MDNHead", "in_features", in_features)
        if not isinstance(head, Head):
            raise TypeError(
                f"MDNHead: head must be a jaxmdn head, got {type(head).__name__}; "
                f"for example jaxmdn.NormalHead(num_components=5, event_dim=1)."
            )
        self.head = head
        kernel_init = nnx.initializers.variance_scaling(kernel_scale**2, "fan_in", "normal")
        self.linear = nnx.Linear(
            in_features,
            head.num_outputs,
            kernel_init=kernel_init,
            dtype=dtype_name("MDNHead", dtype),
            param_dtype=dtype_name("MDNHead", param_dtype),
            rngs=rngs,
        )

    def raw(self, hidden: Float[ArrayLike, "... H"]) -> Float[Array, "... P"]:
        """Raw outputs, ``[..., P]``."""
        if not _is_plain(self.linear):
            return self.linear(hidden)
        return raw_outputs(self._layer(hidden), self.linear.precision)

    def _layer(self, hidden: Any) -> Layer:
        """The operands of the output layer, each in the dtype that it is used in."""
        linear = self.linear
        own = (hidden, linear.kernel[...], linear.bias[...])
        hidden, kernel, bias = map(jnp.asarray, own)
        dtype = linear.dtype or jnp.result_type(hidden, kernel)
        return Layer(hidden.astype(dtype), kernel.astype(dtype), bias)

    def __call__(self, hidden: Float[ArrayLike, "... H"]) -> Density:
        return self.head(self.raw(hidden))

    def nll(self, hidden: Float[ArrayLike, "... H"], y: Any, **options: Any) -> Float[Array, "..."]:
        """Negative log-likelihood; options as in :func:`jaxmdn.linear_nll`.

        The output layer is part of the loss, so that raw outputs exist a block of rows at a time.
        A subclass that overrides :meth:`raw`, or another module in the place of ``linear``, is
        called as it is.
        """
        linear = self.linear
        if type(self).raw is not MDNHead.raw or not _is_plain(linear):
            return losses.nll(self.head, self.raw(hidden), y, **options)
        layer = self._layer(hidden)
        return losses.linear_nll(self.head, *layer, y, **{"precision": linear.precision} | options)

    def initialize(
        self, key: Key[Array, ""], y: Any, *, weights: Float[ArrayLike, "N"] | None = None
    ) -> None:
        """Set the bias so that the layer starts as the targets' own marginal density, in place.

        See :func:`jaxmdn.heads.initializers.from_targets`.
        """
        bias = initializers.from_targets(key, self.head, y, weights=weights)
        self.linear.bias[...] = bias.astype(self.linear.bias[...].dtype)


class MDN(Network):
    """A mixture density network: a multilayer perceptron and an :class:`MDNHead`.

    Args:
      in_features: number of input features.
      head: a jaxmdn head.
      hidden_features, activation, dropout, embedding: see :class:`MLP`.
      kernel_scale, dtype, param_dtype: see :class:`MDNHead`.
      rngs: NNX random streams.

    For another trunk (convolutional, recurrent, ...) use :meth:`from_trunk`.

    >>> import jax, jax.numpy as jnp, jaxmdn
    >>> from flax import nnx
    >>> model = jaxmdn.nn.MDN(3, jaxmdn.NormalHead(5, 1), rngs=nnx.Rngs(0))
    >>> jaxmdn.mean(model(jnp.zeros((8, 3)))).shape
    (8, 1)

    References:
      Bishop (1994), Mixture Density Networks.
    """

    def __init__(
        self,
        in_features: int,
        head: Head,
        *,
        hidden_features: Sequence[int] = (128, 128, 128),
        activation: str | Callable[[Array], Array] = "silu",
        dropout: float = 0.0,
        embedding: float | None = 0.2,
        kernel_scale: float = 0.1,
        dtype: Any = None,
        param_dtype: Any = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        hidden_features = tuple(hidden_features)
        dtypes = {
            "dtype": dtype_name("MDN", dtype),
            "param_dtype": dtype_name("MDN", param_dtype),
        }
        options: dict[str, Any] = {"activation": activation, "dropout": dropout, **dtypes}
        self.trunk: Any = MLP(
            in_features, hidden_features, **options, embedding=embedding, rngs=rngs
        )
        features = self.trunk.out_features
        self.output = MDNHead(features, head, kernel_scale=kernel_scale, **dtypes, rngs=rngs)
        self.arguments = (
            ("in_features", in_features),
            ("hidden_features", hidden_features),
            ("activation", self.trunk.activation),
            ("dropout", dropout),
            ("embedding", embedding),
            ("kernel_scale", kernel_scale),
            *dtypes.items(),
        )

    @classmethod
    def from_trunk(
        cls,
        trunk: nnx.Module,
        features: int,
        head: Head,
        *,
        kernel_scale: float = 0.1,
        dtype: Any = None,
        param_dtype: Any = "float32",
        rngs: nnx.Rngs,
    ) -> MDN:
        """Put an output layer on any trunk that maps inputs to ``[..., features]``.

        ``kernel_scale``, ``dtype`` and ``param_dtype`` are those of the :class:`MDNHead`.
        """
        model = cls(1, head, hidden_features=(), embedding=None, rngs=rngs)
        model.trunk = trunk
        model.output = MDNHead(
            features,
            head,
            kernel_scale=kernel_scale,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        model.arguments = None
        return model

    @property
    def head(self) -> Head:
        """The head (static configuration); another one with as many raw outputs may be set."""
        return self.output.head

    @head.setter
    def head(self, head: Head) -> None:
        self.output.head = head

    def raw(self, x: Any) -> Float[Array, "... P"]:
        """Raw outputs, ``[..., P]``."""
        return self.output.raw(self.trunk(x))

    def __call__(self, x: Any) -> Density:
        return self.output(self.trunk(x))

    def nll(self, x: Any, y: Any, **options: Any) -> Float[Array, "..."]:
        """Negative log-likelihood of ``y`` given ``x``; options as in :func:`jaxmdn.nll`."""
        return self.output.nll(self.trunk(x), y, **options)

    def initialize(
        self, key: Key[Array, ""], y: Any, *, weights: Float[ArrayLike, "N"] | None = None
    ) -> None:
        """Start as the targets' marginal density, in place; see :meth:`MDNHead.initialize`."""
        self.output.initialize(key, y, weights=weights)

    @property
    def heads(self) -> dict[str, Any]:
        return {"head": self.head}

    def config(self) -> dict[str, Any]:
        return {**self.description(), "head": to_config(self.head)}

    @classmethod
    def from_config(cls, config: dict[str, Any], *, rngs: nnx.Rngs) -> MDN:
        """Build the network that :meth:`config` describes, with fresh parameters."""
        arguments = {"embedding": None, **config}  # early descriptions know no embedding
        return cls(head=from_config(arguments.pop("head")), **arguments, rngs=rngs)
