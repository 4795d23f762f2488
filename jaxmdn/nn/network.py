"""What the networks share: a description they are built again from, and pickles made of it."""

from __future__ import annotations

import abc
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxmdn import checks
from jaxmdn.components import pickling
from jaxmdn.typing import Array

ACTIVATIONS = (
    "celu",
    "elu",
    "gelu",
    "leaky_relu",
    "relu",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "tanh",
)


def named(function: str, activation: Any) -> Any:
    """An activation by its name if it is one of :data:`ACTIVATIONS`, given by name or as such."""
    for name in ACTIVATIONS:
        if activation is getattr(nnx, name):
            return name
    if isinstance(activation, str):
        checks.require_option(function, "activation", activation, ACTIVATIONS)
    return activation


def activate(activation: Any, values: Array) -> Array:
    """The activation of these values."""
    return (getattr(nnx, activation) if isinstance(activation, str) else activation)(values)


def dtype_name(function: str, dtype: Any) -> str | None:
    """The name of a floating dtype, for JSON; None stays."""
    if dtype is None:
        return None
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{function}: dtype must be a floating one such as 'bfloat16', got {dtype!r}."
        )
    return jnp.dtype(dtype).name


class Network(nnx.Module):
    """A network that can be described: its constructor's arguments and its parameters.

    ``config`` and ``from_config`` go through JSON, which holds an activation by its name alone.
    ``pickle`` (``cloudpickle``, ``joblib``) takes a function, too, if it can be imported, and every
    parameter, the random streams of dropout and the mode (training or evaluation) with it: nothing
    private to JAX or Flax, so that another version of them reads it. A network with other modules
    than its own constructor makes, such as a trunk of yours, is pickled as Flax does it, for the
    same version of Flax.
    """

    #: Name and value of each argument but the heads; None where they are not known.
    arguments: tuple[tuple[str, Any], ...] | None

    @property
    @abc.abstractmethod
    def heads(self) -> dict[str, Any]:
        """The argument that is left out of :attr:`arguments`, by its name."""

    @property
    def describable(self) -> bool:
        """Whether :meth:`config` can describe this network."""
        return self.arguments is not None and isinstance(dict(self.arguments)["activation"], str)

    @abc.abstractmethod
    def config(self) -> dict[str, Any]:
        """Return a JSON-ready description from which ``from_config`` builds the network.

        Raises:
          ValueError: for a custom trunk or activation, which only its author can rebuild.
        """

    def description(self) -> dict[str, Any]:
        """The arguments that JSON holds as they are."""
        if self.arguments is None or not self.describable:
            raise ValueError(
                f"{type(self).__name__}.config: a custom trunk or activation cannot be described; "
                f"keep the code that builds the model and pass a fresh one to "
                f"jaxmdn.checkpoint.load(..., model=...)."
            )
        return dict(self.arguments)

    def __reduce_ex__(self, protocol: Any) -> Any:
        own = type(self).__module__.startswith("jaxmdn.")  # whose constructor takes these arguments
        if self.arguments is None or not own:
            return super().__reduce_ex__(protocol)
        arguments = {**dict(self.arguments), **self.heads}
        pickling.require_importable(type(self).__name__, "activation", arguments["activation"])
        for training in (True, False):
            if nnx.graphdef(self) == nnx.graphdef(_abstract(type(self), arguments, training)):
                leaves = [(path, part.get_raw_value()) for path, part in _flat(self)]
                return rebuild, (type(self), arguments, pickling.pack(leaves), training)
        return super().__reduce_ex__(protocol)


def rebuild(
    cls: type[Any], arguments: dict[str, Any], leaves: list[tuple[Any, Any]], training: bool
) -> Any:
    """The network that a pickle describes."""
    model, arrays = _abstract(cls, arguments, training), dict(pickling.unpack(leaves))
    found = [(path, part.replace(arrays[path])) for path, part in _flat(model)]
    nnx.update(model, nnx.from_flat_state(found))
    return model


def _abstract(cls: type[Any], arguments: dict[str, Any], training: bool) -> Any:
    """The network without its numbers."""
    model = nnx.eval_shape(lambda: cls(**arguments, rngs=nnx.Rngs(0)))
    model.train() if training else model.eval()
    return model


def _flat(model: Any) -> list[tuple[tuple[Any, ...], Any]]:
    return list(nnx.to_flat_state(nnx.state(model)))
