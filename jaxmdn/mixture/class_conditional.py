"""Structured densities: class-conditional mixtures.

A class-conditional density is a mixture of mixtures. Its outer weights are class probabilities
``p(c | x)`` and its outer components the mixtures ``p(y | c, x)``, one per class:

    Mixture(logits=class_logits,                       # [..., C]
            components=Mixture(logits=..., ...))       # batch shape [..., C]

So ``log_prob`` is the class-marginal density, ``component_log_prob`` is ``log p(y | c, x)`` for
every class, ``responsibilities`` is Bayes' rule ``p(c | x, y)`` and ``sample`` with
``return_index=True`` draws a class along with its target. This module adds what needs a label.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxmdn import checks, meshes, numerics
from jaxmdn.components.batch import flatten
from jaxmdn.components.categorical import gather_class
from jaxmdn.mixture.mixture import Mixture, check_target
from jaxmdn.typing import Array, Float, Int, Num


class Labeled(NamedTuple):
    """A target whose class is known: ``nll(head, raw, Labeled(label, y))`` scores them jointly.

    Attributes:
      label: class indices ``[...]``, integers in ``0 .. C - 1``.
      y: targets ``[..., D]``.
    """

    label: Array
    y: Array


def _check(function: str, mixture: Mixture, label: Array, y: Array) -> None:
    if not (isinstance(mixture, Mixture) and isinstance(mixture.components, Mixture)):
        raise TypeError(
            f"{function}: expected a class-conditional density (a Mixture whose components are "
            f"mixtures), got {type(mixture).__name__}; ClassConditionalHead returns one."
        )
    _check_label(function, mixture, label)
    check_target(function, mixture, y)
    checks.require_broadcastable(
        function, density=mixture.batch_shape, label=label.shape, y=y.shape[:-1]
    )


def _check_label(function: str, mixture: Mixture, label: Array) -> None:
    checks.require_integer(function, "label", label)
    if label.shape[-1:] == (1,) and label.ndim == len(mixture.batch_shape) + 1:
        raise ValueError(
            f"{function}: expected label of shape {list(mixture.batch_shape)}, one class index per "
            f"row, got {list(label.shape)}; drop the last axis: label[..., 0]."
        )


@meshes.jit
def class_log_prob(mixture: Mixture, label: Int[Array, "..."]) -> Float[Array, "..."]:
    """Log-probability of a class given the input alone, ``log p(c | x)``, ``[...]``, nats.

    A class index out of range gives ``-inf``.
    """
    _check_label("class_log_prob", mixture, label)
    return gather_class(mixture.log_weights(), label)


@meshes.jit
def conditional_log_prob(
    mixture: Mixture, label: Int[Array, "..."], y: Num[Array, "..."]
) -> Float[Array, "..."]:
    """Log-density of a target whose class is known, ``log p(y | c, x)``, ``[...]``, nats.

    Args:
      mixture: a class-conditional density (see the module's head).
      label: class indices ``[...]``; out of range gives ``-inf``.
      y: targets ``[..., D]``.
    """
    _check("conditional_log_prob", mixture, label, y)
    return gather_class(mixture.components.log_prob(y[..., None, :]), label)


@meshes.jit
def joint_log_prob(
    mixture: Mixture, label: Int[Array, "..."], y: Num[Array, "..."]
) -> Float[Array, "..."]:
    """Joint log-density of class and target, ``log p(c | x) + log p(y | c, x)``, ``[...]``, nats.

    Summed over all classes (in probability) it equals ``log_prob(mixture, y)``.
    """
    _check("joint_log_prob", mixture, label, y)
    return gather_class(mixture.joint_log_prob(y), label)


def flatten_mixture(mixture: Mixture) -> Mixture:
    """Flatten a class-conditional density to one mixture of ``C * K`` components.

    The density is the same; functions that want plain components (quantiles, closed-form scores)
    take the flat form.
    """
    inner = mixture.components
    if not isinstance(inner, Mixture):
        return mixture
    outer_weights, inner_weights = numerics.upcast(mixture.log_weights(), inner.log_weights())
    inner = Mixture(logits=outer_weights[..., None] + inner_weights, components=inner.components)
    logits = inner.logits.reshape(*inner.logits.shape[:-2], -1)
    return Mixture(logits=logits, components=flatten(inner.components))
