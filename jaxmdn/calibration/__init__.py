"""Calibration: do the predicted probabilities come true?"""

from jaxmdn.calibration.coverage import coverage
from jaxmdn.calibration.uniform import pit

__all__ = ["coverage", "pit"]
