"""How an ensemble is trained: one rule for every table, as a handful of numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx

from jaxmdn import checks
from jaxmdn.heads import FactorizedHead, Family, Head
from jaxmdn.nn import MDN

FEW_ROWS = 2500  # below so many rows, more folds and smaller batches
LINEAR_ROWS = 400  # below so many, a linear model: it helps at 200, and makes no difference at 500
EFFORTS = ("fast", "default", "best")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The numbers of :func:`jaxmdn.train.fit_ensemble`; all can be changed.

    Attributes:
      folds: parts of the rows that are held out in turn; None: 10 below 2,500 rows, else 5.
      members: networks of each arm for each fold.
      frequency_scales: one arm each, of this ``frequency_scale`` of its periodic embedding: smooth
        networks and rough ones.
      hidden_features: widths of the trunk's layers.
      dropout: share of the units dropped in training.
      num_components, df: of the default head, a mixture of Student-t components.
      cycles: lengths of the training's cycles, in epochs. Each starts from the full learning rate;
        after each the ensemble is calibrated and scored on the rows held out.
      min_gain: training stops where the next cycle is expected to gain less, in nats a row: the
        last one's gain, times its ratio to the gain before where that is below one.
      peak_rate, warmup: the full learning rate, and the share of a cycle spent rising to it; then
        it falls by a cosine to zero.
      weight_decay: of matrices.
      clip: largest global norm of a gradient.
      batch_size: rows a step; None: 64 below 2,500 rows, else 256.
      linear: whether a ridge regression with constant noise may predict beside the networks, with
        the weight that rows held out give it, if that is a twentieth at least; None: below 400
        rows. Heads without locations and scales have none.
      min_scale: floor of a standardised scale.
      grid: where the targets are whole multiples of a step, of at least three values, the floor is
        0.29 of it (the standard deviation of rounding) if that is larger.
    """

    folds: int | None = None
    members: int = 1
    frequency_scales: tuple[float, ...] = (0.2, 1.0)
    hidden_features: tuple[int, ...] = (128, 128, 128)
    dropout: float = 0.0
    num_components: int = 5
    df: float = 5.0
    cycles: tuple[int, ...] = (10, 20, 40, 80, 160, 320)
    min_gain: float = 0.01
    peak_rate: float = 5e-3
    warmup: float = 0.05
    weight_decay: float = 0.1
    clip: float = 1.0
    batch_size: int | None = None
    linear: bool | None = None
    min_scale: float = 1e-3
    grid: bool = True

    def __post_init__(self) -> None:
        name = "Recipe"
        if self.folds is not None:
            checks.require_count(name, "folds", self.folds, minimum=2)
        if self.batch_size is not None:
            checks.require_count(name, "batch_size", self.batch_size)
        checks.require_count(name, "members", self.members)
        checks.require_count(name, "num_components", self.num_components)
        for field in ("frequency_scales", "hidden_features", "cycles"):
            value = getattr(self, field)
            if isinstance(value, (int, float, str)):
                raise TypeError(f"{name}: {field} must be a sequence such as ({value},).")
            object.__setattr__(self, field, tuple(value))
        for cycle in self.cycles:
            checks.require_count(name, "cycles", cycle)
        if not self.frequency_scales or not self.cycles:
            raise ValueError(f"{name}: frequency_scales and cycles need at least one entry each.")
        if self.linear is not None and not isinstance(self.linear, bool):
            raise TypeError(f"{name}: linear must be True, False or None, got {self.linear!r}.")
        for field in ("min_gain", "weight_decay", "min_scale"):
            checks.require_number(name, field, getattr(self, field), lower=0.0)
        for field in ("peak_rate", "clip", "df"):
            checks.require_number(name, field, getattr(self, field), lower=0.0, strict_lower=True)
        for scale in self.frequency_scales:
            checks.require_number(name, "frequency_scales", scale, lower=0.0)
        checks.require_number(name, "dropout", self.dropout, lower=0.0, upper=1.0)
        checks.require_number(name, "warmup", self.warmup, lower=0.0, strict_lower=True, upper=1.0)

    def num_folds(self, num_rows: int) -> int:
        """How many folds for so many rows."""
        return min(num_rows, self.folds or (10 if num_rows < FEW_ROWS else 5))

    def rows_a_step(self, num_rows: int) -> int:
        """How many rows a batch has."""
        return self.batch_size or (64 if num_rows < FEW_ROWS else 256)

    def with_linear(self, num_rows: int) -> bool:
        """Whether a linear model predicts beside the networks."""
        return num_rows < LINEAR_ROWS if self.linear is None else self.linear

    def head(self, event_dim: int) -> Head:
        """The default head, for real targets."""
        family = Family("student_t", df=self.df)
        # The floor is noise under every scale, in training and after calibration.
        return FactorizedHead((family,) * event_dim, self.num_components, min_scale=0.0)

    def network(self, arm: int, in_features: int, head: Head, rngs: nnx.Rngs) -> MDN:
        """A fresh network of one arm."""
        return MDN(
            in_features,
            head,
            hidden_features=self.hidden_features,
            dropout=self.dropout,
            embedding=self.frequency_scales[arm],
            rngs=rngs,
        )


def resolve(function: str, recipe: Any, effort: str) -> Recipe:
    """The recipe itself, or that of an effort."""
    if recipe is not None:
        if not isinstance(recipe, Recipe):
            raise TypeError(
                f"{function}: recipe must be a jaxmdn.train.Recipe, got {type(recipe).__name__}."
            )
        return recipe
    checks.require_option(function, "effort", effort, EFFORTS)
    if effort == "fast":
        return Recipe(folds=5, cycles=(10, 20, 40, 80))
    return (
        Recipe()
        if effort == "default"
        else Recipe(members=2, cycles=(10, 20, 40, 80, 160, 320, 640))
    )
