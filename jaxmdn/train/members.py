"""The compiled side of ``fit_ensemble``: many networks, each on rows of its own, in one program.

Everything here is written for one network and mapped over all of them by ``vmap``. Every network
takes as many steps, on full batches drawn from its own rows.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxmdn import meshes
from jaxmdn.heads import Head
from jaxmdn.inference.cells import log_likelihood
from jaxmdn.inference.widening import has_scales, widen
from jaxmdn.train.data import Rows
from jaxmdn.train.state import matrices
from jaxmdn.typing import Array, Float, Int


class Member(NamedTuple):
    """One network in training; of many of them, every leaf has a leading axis.

    Attributes:
      params: what is trained.
      model_state: what the network carries besides (dropout's counters).
      opt_state: the state of :func:`direction`.
      key: shuffles the rows.
    """

    params: Any
    model_state: Any
    opt_state: Any
    key: Any


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is static about the training of the networks."""

    train_graph: Any
    eval_graph: Any
    head: Head
    batch_size: int
    weight_decay: float
    clip: float
    warmup: float

    @classmethod
    def create(cls, model: Any, **options: Any) -> Plan:
        """The plan of a network's training."""
        model.eval()
        eval_graph = nnx.graphdef(model)
        model.train()
        return cls(nnx.graphdef(model), eval_graph, model.head, **options)

    @property
    def direction(self) -> optax.GradientTransformation:
        """Adam's direction after clipping, with weight decay on matrices alone."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            optax.scale_by_adam(),
            optax.add_decayed_weights(self.weight_decay, matrices),
        )


def rate(warmup: float, fraction: Float[Array, ""]) -> Float[Array, ""]:
    """The share of the full learning rate after a fraction of a cycle: warm-up, then a cosine."""
    rest = (fraction - warmup) / (1 - warmup)
    return jnp.minimum(fraction / warmup, 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(rest, 0, 1))))


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def epoch(
    plan: Plan,
    members: Member,
    rows: Rows,
    index: Int[Array, "M n"],
    floor: Float[Array, "D"],
    width: Float[Array, "D"] | None,
    peak: Float[Array, ""],
    done: Int[Array, ""],
    length: Int[Array, ""],
) -> tuple[Member, Float[Array, "M"]]:
    """One pass of every network over its own rows; the mean loss of each, in standardised units.

    Args:
      plan: static.
      members: donated.
      rows: the rows of the whole table, shared; their weights have mean one.
      index: which of them each network is trained on.
      floor: noise under every scale, in standardised units.
      width: of the cells of targets on a grid, in standardised units; None: by the density.
      peak: the full learning rate.
      done, length: epochs done of this cycle, and the cycle's length.
    """
    one = partial(_epoch, plan, rows, floor=floor, width=width, peak=peak, done=done, length=length)
    return jax.vmap(one)(members, index)


def _epoch(
    plan: Plan,
    rows: Rows,
    member: Member,
    index: Int[Array, "n"],
    *,
    floor: Array,
    width: Array | None,
    peak: Array,
    done: Array,
    length: Array,
) -> tuple[Member, Array]:
    key, order_key = jax.random.split(member.key)
    steps = index.shape[0] // plan.batch_size
    order = jax.random.permutation(order_key, index)[: steps * plan.batch_size]

    def loss(params: Any, model_state: Any, batch: Rows) -> tuple[Array, Any]:
        model = nnx.merge(plan.train_graph, params, model_state, copy=True)
        return _loss(plan.head, model, batch, floor, width), nnx.state(model, nnx.Not(nnx.Param))

    def step(carry: tuple[Any, Any, Any], cut: tuple[Array, Array]) -> tuple[Any, Array]:
        params, model_state, opt_state = carry
        chosen, number = cut
        values = jax.value_and_grad(loss, has_aux=True)(params, model_state, rows.take(chosen))
        (value, model_state), grads = values
        norm = optax.tree.norm(grads)
        sound = jnp.isfinite(norm)
        grads = jax.tree.map(lambda g: jnp.where(sound, g, jnp.zeros_like(g)), grads)
        updates, opt_state = plan.direction.update(grads, opt_state, params)
        fraction = (done + (number + 1) / steps) / length
        size = jnp.where(sound, -peak * rate(plan.warmup, fraction), 0)
        params = jax.tree.map(lambda p, u: p + (size * u).astype(p.dtype), params, updates)
        return (params, model_state, opt_state), value

    cuts = (order.reshape(steps, plan.batch_size), jnp.arange(steps, dtype=jnp.float32))
    start = (member.params, member.model_state, member.opt_state)
    (params, model_state, opt_state), losses = meshes.scan(step, start, cuts)
    return Member(params, model_state, opt_state, key), jnp.mean(losses)


def _loss(head: Head, model: Any, batch: Rows, floor: Array, width: Array | None) -> Array:
    """The NLL with noise of size ``floor`` under every scale, where components have scales."""
    if not has_scales(head.density_shape) and width is None:
        return model.nll(batch.x, batch.y, weights=batch.weights, reduction="sum") / len(
            batch.weights
        )
    density = model(batch.x)
    density = widen(density, 1.0, floor) if has_scales(density) else density
    return -jnp.mean(batch.weights * log_likelihood(density, batch.y, width))
