"""What a trained network or ensemble computes, as a pytree: to be compiled, padded and exported."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxmdn.calibration.temperature import Temperature, apply_temperature
from jaxmdn.components.base import Density
from jaxmdn.components.declare import register
from jaxmdn.train.ensemble_result import EnsembleResult
from jaxmdn.train.linear import Linear
from jaxmdn.train.result import FitResult, calibrated
from jaxmdn.train.run import densities
from jaxmdn.typing import Array


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictor:
    """From standardised inputs ``[N, F]`` to the density of standardised targets, ``[N]``.

    Attributes:
      graphdef: the architecture (static), in evaluation mode.
      networks: parameters; of an ensemble all of them, ``[A, G, ...]``.
      linear: the linear model beside an ensemble's networks, if there is one.
      temperature, floor: the ensemble's calibration; None for a single network.
      factor: of a single network's scales; None for one.
    """

    graphdef: Any = dataclasses.field(metadata={"static": True})
    networks: Any
    temperature: Temperature | None = None
    floor: Array | None = None
    factor: float | None = None
    linear: Linear | None = None

    @classmethod
    def of(cls, result: FitResult | EnsembleResult) -> Predictor:
        """What ``fit`` or ``fit_ensemble`` returned, without its standardisers."""
        if isinstance(result, EnsembleResult):
            names = ("graphdef", "networks", "linear", "temperature", "floor")
            return cls(**{name: getattr(result, name) for name in names})
        graphdef, state = nnx.split(result.model)
        return cls(graphdef=graphdef, networks=state, factor=result.factor)

    def __call__(self, x: Array) -> Density:
        if self.temperature is None:
            return calibrated(nnx.merge(self.graphdef, self.networks)(x), self.factor)
        arms = densities(self.graphdef, self.networks, self.linear, x)
        return apply_temperature(self.temperature, arms, floor=jnp.asarray(self.floor))
