"""Training with Optax: pure steps for your own loop, and ``fit`` for the common case."""

from jaxmdn.train.fit import FitResult, NonFiniteLossError, fit
from jaxmdn.train.report import ComponentReport, ComponentWarning
from jaxmdn.train.standardize import Standardizer
from jaxmdn.train.state import StepMetrics, TrainState, make_eval_step, make_train_step

__all__ = [
    "ComponentReport",
    "ComponentWarning",
    "FitResult",
    "NonFiniteLossError",
    "Standardizer",
    "StepMetrics",
    "TrainState",
    "fit",
    "make_eval_step",
    "make_train_step",
]
