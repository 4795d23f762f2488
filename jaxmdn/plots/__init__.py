"""Pictures of conditional densities. Every function draws into an ``Axes`` and returns it.

Needs matplotlib (``pip install 'jaxmdn[plot]'``). Colours come from the Okabe-Ito palette and the
perceptually uniform ``viridis``, so that they survive colour blindness and grey printing; no
picture tells two things apart by colour alone.
"""

from jaxmdn.plots.calibration import pit_histogram, reliability_curve
from jaxmdn.plots.densities import conditional_density, contours, density, fan_chart
from jaxmdn.plots.discrete import probabilities
from jaxmdn.plots.predictions import predicted_against_actual
from jaxmdn.plots.style import BLACK, BLUE, GREEN, ORANGE, PALETTE
from jaxmdn.plots.training import component_usage, training_curve

__all__ = [
    "BLACK",
    "BLUE",
    "GREEN",
    "ORANGE",
    "PALETTE",
    "component_usage",
    "conditional_density",
    "contours",
    "density",
    "fan_chart",
    "pit_histogram",
    "predicted_against_actual",
    "probabilities",
    "reliability_curve",
    "training_curve",
]
