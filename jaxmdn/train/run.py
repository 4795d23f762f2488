"""An ensemble on its way: the networks, the rows of each, and what held-out rows say of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmdn.calibration.temperature import (
    Temperature,
    apply_temperature,
    fit_temperature,
    peak,
)
from jaxmdn.heads import Head, initializers
from jaxmdn.inference.cells import log_likelihood
from jaxmdn.inference.widening import has_scales, widen
from jaxmdn.mixture.merging import pool
from jaxmdn.train.data import Rows
from jaxmdn.train.linear import Linear, beside
from jaxmdn.train.members import Member, Plan, epoch
from jaxmdn.train.recipe import Recipe
from jaxmdn.train.spread import over_members
from jaxmdn.train.threads import num_parts, side_by_side
from jaxmdn.train.watch import Interrupts
from jaxmdn.typing import Array


@partial(jax.jit, static_argnums=0)
def densities(graphdef: Any, networks: Any, linear: Linear | None, x: Any) -> tuple[Any, ...]:
    """Each arm's density of each row, ``[A, N]``: its networks pooled with equal weights.

    In a tuple, where the linear model's density follows, ``[1, N]``, if there is one.
    """
    arms = jax.lax.map(lambda arm: pool(_density_of_each(graphdef, arm, x)), networks)
    return (arms,) if linear is None else (arms, beside(arms, linear(x), linear.scale))


@partial(jax.jit, static_argnums=0)
def moments(
    graphdef: Any,
    networks: Any,
    linear: Linear | None,
    x: Any,
    temperature: Temperature,
    floor: Array,
) -> tuple[Array, Array, Array]:
    """Share ``[M]``, means and variances ``[M, N, D]`` of each network's calibrated density.

    The linear model's are the last, if there is one.
    """
    noise = jnp.maximum(temperature.noise, floor)

    def of(density: Any, factor: Array) -> tuple[Array, Array]:
        if has_scales(density):
            density = widen(density, factor, noise)
        return density.mean(), density.variance()

    def one(arm: tuple[Any, Array]) -> tuple[Array, Array]:
        state, factor = arm
        return of(_density_of_each(graphdef, state, x), factor)

    arms, each = jax.tree.leaves(networks)[0].shape[:2]
    found = jax.lax.map(one, (networks, temperature.scale[:arms]))
    found = jax.tree.map(lambda leaf: leaf.reshape(arms * each, *leaf.shape[2:]), found)
    shares = jnp.repeat(temperature.weights[:arms] / each, each)
    if linear is not None:
        like = _density_of_each(graphdef, jax.tree.map(lambda leaf: leaf[0, :1], networks), x)
        own = of(beside(like, linear(x), linear.scale), temperature.scale[-1])
        found = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), found, own)
        shares = jnp.append(shares, temperature.weights[-1])
    return shares, *found


def _density_of_each(graphdef: Any, networks: Any, x: Any) -> Any:
    """The density of each row under each network, one network after another, ``[G, N]``."""
    return jax.lax.map(lambda state: nnx.merge(graphdef, state, copy=True)(x), networks)


@partial(jax.jit, static_argnums=(0, 1))
def _out_of_fold(
    plan: Plan, arms: int, snapshots: tuple[Any, ...], rows: Rows, held: Array, place: Array
) -> Any:
    """Each arm's density of each row under the networks that did not see it, ``[A, N]``.

    Args:
      plan: static.
      arms: A.
      snapshots: of all networks, ``[M, ...]`` each, ordered by arm, member and fold.
      rows: the table.
      held: the rows that each fold holds out, ``[F, n]``, the last repeated to equal length.
      place: where each row stands among them.
    """

    def one(state: tuple[Any, Array]) -> Any:
        network, fold = state
        return nnx.merge(plan.eval_graph, *network, copy=True)(rows.take(held[fold]).x)

    count = jax.tree.leaves(snapshots)[0].shape[0]
    folds = jnp.arange(count, dtype=jnp.int32) % held.shape[0]
    each = [jax.lax.map(one, (snapshot, folds)) for snapshot in snapshots]  # [M, n]

    def chosen(leaf: Array) -> Array:  # [M, n, ...] -> [A * members, N, ...]
        return leaf.reshape(-1, held.size, *leaf.shape[2:])[:, place]

    return jax.vmap(pool)(_by_arm(arms, tuple(jax.tree.map(chosen, own) for own in each)))


@jax.jit
def _calibrate(
    models: Any, linear: tuple[Array, Array] | None, rows: Rows, floor: Array, width: Array | None
) -> tuple[Temperature, Any, Array, Array]:
    """Temperature, calibrated density, its NLL on the rows, and the networks' without it."""
    options = {"weights": rows.weights, "floor": floor, "width": width}
    every = (models,) if linear is None else (models, beside(models, *linear))
    temperature = fit_temperature(every, rows.y, **options)
    density = apply_temperature(temperature, every, floor=floor)
    plain = widen(models, 1.0, floor) if has_scales(models) else models  # as in training
    nll, raw = (
        -jnp.mean(rows.weights * log_likelihood(each, rows.y, width))
        for each in (density, pool(plain))
    )
    return temperature, density, nll, raw


# Log-factors that are tried.
LOG_FACTORS = np.linspace(-1.0, 3.0, 41)


@jax.jit
def narrowing(models: Any, rows: Rows, noise: Array, width: Array | None = None) -> Array:
    """How much narrower components are best where all models predict than where one does, alone.

    The factor of all scales that is best for the models' equal mixture, over the one that is best
    for a single model, on average over the models.

    Args:
      models: the densities of rows that none was trained on, ``[A, N]``.
      rows: their targets and weights.
      noise: as in ``apply_temperature``.
      width: of the cells of targets on a grid.
    """

    def score(factor: Array) -> Array:
        each = log_likelihood(widen(models, factor, noise), rows.y, width)  # [A, N]
        both = jnp.stack([jnp.mean(each, axis=0), jax.nn.logsumexp(each, axis=0)])
        return jnp.mean(rows.weights * both, axis=-1)

    scores = jax.lax.map(score, jnp.exp(jnp.asarray(LOG_FACTORS, jnp.float32)))
    best = peak(scores)
    return jnp.exp((LOG_FACTORS[1] - LOG_FACTORS[0]) * (best[1] - best[0]))


@partial(jax.jit, static_argnums=0)
def _narrowed(arms: int, temperature: Temperature, factor: Array) -> Temperature:
    """With smaller scales of the networks, and less noise; a linear model keeps its own scale."""
    scale = temperature.scale.at[:arms].multiply(factor)
    return dataclasses.replace(temperature, scale=scale, noise=factor * temperature.noise)


@partial(jax.jit, static_argnums=0)
def _by_arm(arms: int, snapshots: tuple[Any, ...]) -> Any:
    """States ``[M, ...]`` of several moments as ``[A, S M / A, ...]``."""

    def join(*leaves: Array) -> Array:
        wide = jnp.stack(leaves)
        wide = wide.reshape(len(leaves), arms, -1, *wide.shape[2:])
        return jnp.moveaxis(wide, 0, 1).reshape(arms, -1, *wide.shape[3:])

    return jax.tree.map(join, *snapshots)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _start(
    recipe: Recipe, plan: Plan, width: int, each: int, key: Array, key_train: Array, bias: Array
) -> Member:
    """Fresh networks, ``each`` of every arm, ``[M, ...]``.

    Args:
      recipe, plan, width, each: static; ``width`` is the number of standardised inputs.
      key, key_train: of the parameters, and of what training draws.
      bias: the first one of the output layer, ``[P]``.
    """

    def fresh(arm: int, key: Array) -> tuple[Any, Any]:
        model = recipe.network(arm, width, plan.head, nnx.Rngs(key))
        start = model.output.linear.bias
        start[...] = bias.astype(start[...].dtype)
        return tuple(nnx.split(model, nnx.Param, ...)[1:])

    arms = len(recipe.frequency_scales)
    keys = jax.random.split(key, (arms, each))
    states = [jax.vmap(partial(fresh, arm))(keys[arm]) for arm in range(arms)]
    params, model_state = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *states)
    opt_state = jax.vmap(plan.direction.init)(params)
    return Member(params, model_state, opt_state, jax.random.split(key_train, arms * each))


@partial(jax.jit, static_argnums=0)
def _cut(count: int, tree: Any) -> list[Any]:
    """Equal parts of the leading axis of every leaf."""
    leaves, structure = jax.tree.flatten(tree)
    parts = zip(*(jnp.split(leaf, count) for leaf in leaves), strict=True)
    return [jax.tree.unflatten(structure, part) for part in parts]


@jax.jit
def _joined(parts: list[Any]) -> Any:
    """The parts in one, and a copy."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """An ensemble at one moment, calibrated on held-out rows.

    Attributes:
      snapshots: the networks' states.
      temperature: what calibration found.
      density: of each row, calibrated, under the networks that did not see it, ``[N]``.
      nll, raw_nll: mean negative log-likelihood of these rows after and before calibration.
    """

    snapshots: list[Any]
    temperature: Temperature
    density: Any
    nll: float
    raw_nll: float


class Run:
    """An ensemble in training: its networks, spread over the devices, and the rows of each."""

    def __init__(
        self,
        recipe: Recipe,
        head: Head,
        rows: Rows,
        folds: np.ndarray,
        floor: Array,
        seed: int,
        width: Array | None = None,
        devices: Sequence[Any] = (),
        linear: tuple[Array, Array] | None = None,
    ) -> None:
        self.recipe, self.rows, self.floor, self.width = recipe, rows, floor, width
        self.arms, self.linear = len(recipe.frequency_scales), linear
        num_folds = int(folds.max()) + 1
        sets = [np.flatnonzero(folds != fold) for fold in range(num_folds)]
        largest = max(map(len, sets))
        batch_size = min(recipe.rows_a_step(rows.size), min(map(len, sets)))
        # Networks with fewer rows see some of them again.
        index = np.stack([np.resize(own, largest) for own in sets])
        self.index = jnp.asarray(np.tile(index, (self.arms * recipe.members, 1)), jnp.int32)
        held = [np.flatnonzero(folds == fold) for fold in range(num_folds)]
        size = max(map(len, held))
        place = np.empty(rows.size, np.int64)
        for fold, own in enumerate(held):
            place[own] = fold * size + np.arange(len(own))
        self.held = jnp.asarray(np.stack([np.resize(own, size) for own in held]), jnp.int32)
        self.place = jnp.asarray(place, jnp.int32)

        num_inputs = rows.x.shape[1]
        key_start, key_bias, key_train = jax.random.split(jax.random.key(seed), 3)
        self.plan = Plan.create(
            nnx.eval_shape(lambda: recipe.network(0, num_inputs, head, nnx.Rngs(0))),
            batch_size=batch_size,
            weight_decay=recipe.weight_decay,
            clip=recipe.clip,
            warmup=recipe.warmup,
        )
        bias = initializers.from_targets(key_bias, head, rows.y, weights=rows.weights)

        each = recipe.members * num_folds
        members = _start(recipe, self.plan, num_inputs, each, key_start, key_train, bias)
        devices, count = devices or jax.local_devices(), self.arms * each
        self.compiled = False
        # What is trained, and on which rows: all networks, or a part of them for each core.
        self.parts = _cut(
            num_parts(count, devices), over_members(devices, count, (members, self.index))
        )

    def cycle(self, length: int, bar: Any, shift: float, interrupts: Interrupts) -> int:
        """Train for a cycle; return in how many epochs some loss was not finite.

        Args:
          length: epochs.
          bar: a progress bar.
          shift: what is added to the losses that it shows.
          interrupts: whether to break off.
        """
        lost = 0
        for done in range(length):
            if interrupts.asked:
                break
            losses = self.epoch(done, length)
            lost += not np.isfinite(losses).all()
            bar.update()
            bar.set_postfix_str(f"train {losses.mean() + shift:.3f} nats", refresh=False)
        return lost

    def epoch(self, done: int, length: int) -> np.ndarray:
        """Train every network for an epoch; the mean loss of each, ``[M]``."""
        numbers = (self.floor, self.width, self.recipe.peak_rate, done, length)

        def one(members: Member, index: Array) -> tuple[Member, Array]:
            return epoch(self.plan, members, self.rows, index, *numbers)

        found = side_by_side(one, self.parts, compiled=self.compiled)
        members, losses = zip(*found, strict=True)
        self.compiled = True
        self.parts = [(new, index) for new, (_, index) in zip(members, self.parts, strict=True)]
        return np.concatenate(losses)

    def snapshot(self) -> Any:
        """A copy of all networks' states, ``[M, ...]``."""
        return _joined([(members.params, members.model_state) for members, _ in self.parts])

    def calibrate(self, snapshots: list[Any], *, alone: bool = False) -> Calibrated:
        """Calibrate the equal mixture of snapshots on the rows that each network did not see.

        Args:
          snapshots: of all networks.
          alone: without the linear model.
        """
        models, linear = self._out_of_fold(snapshots), None if alone else self.linear
        temperature, density, nll, raw = _calibrate(
            models, linear, self.rows, self.floor, self.width
        )
        return Calibrated(snapshots, temperature, density, float(nll), float(raw))

    def for_all_networks(self, found: Calibrated) -> tuple[Temperature, float]:
        """The temperature for rows that no network has seen, and the factor that it took.

        A held-out row is predicted by the networks of one fold, a new one by those of all F folds.
        Averages of more networks err less, so that their components can be narrower. The logarithm
        of the best factor is taken to be linear in 1 / (number of networks): known for one arm's
        networks of a fold and for those of all A arms, it is extrapolated to all there are, by
        ``(1 - 1 / F) / (A - 1)`` of that difference. The first is at least ``A^(-1/2)``: the
        variance of an average of A is no smaller than ``1 / A`` of one's.
        """
        factor = 1.0
        if self.arms > 1 and has_scales(found.density):
            models = self._out_of_fold(found.snapshots)
            noise = jnp.maximum(found.temperature.noise, self.floor)
            power = (1 - 1 / self.held.shape[0]) / (self.arms - 1)
            found_factor = float(narrowing(models, self.rows, noise, self.width))
            factor = min(1.0, max(found_factor, self.arms**-0.5) ** power)
        return _narrowed(self.arms, found.temperature, factor), factor

    def _out_of_fold(self, snapshots: list[Any]) -> Any:
        table = (self.rows, self.held, self.place)
        return _out_of_fold(self.plan, self.arms, tuple(snapshots), *table)

    def networks(self, snapshots: list[Any]) -> Any:
        """The states of all networks that predict together, ``[A, G, ...]``."""
        return _by_arm(self.arms, tuple(nnx.merge_state(*snapshot) for snapshot in snapshots))
