"""Calibration: do the predicted probabilities come true, and what to do if they do not?

| module | questions |
|---|---|
| ``uniform`` | targets as numbers that are uniform if the model is right, and a test of it |
| ``coverage`` | what share of the targets falls where the model said |
| ``conformal`` | regions that hold what they promise, however wrong the model |
| ``recalibration`` | a map of the predicted probabilities that makes them come true |
| ``temperature`` | a few numbers that do the same for one model or several |
| ``stacking`` | what several models are worth together |

Rows that the model was fitted to answer none of these: use rows it has not seen.
"""

from jaxmdn.calibration.conformal import (
    Interval,
    central_interval,
    conformal_hdr,
    conformal_interval,
)
from jaxmdn.calibration.coverage import ReliabilityTable, coverage, reliability_table
from jaxmdn.calibration.recalibration import (
    Recalibration,
    recalibrate,
    recalibrated_cdf,
    recalibrated_log_prob,
    recalibrated_quantile,
)
from jaxmdn.calibration.stacking import stacking_weights
from jaxmdn.calibration.temperature import (
    Temperature,
    apply_temperature,
    fit_scale_factor,
    fit_temperature,
)
from jaxmdn.calibration.uniform import PitTest, pit, pit_test, rosenblatt

__all__ = [
    "Interval",
    "PitTest",
    "Recalibration",
    "ReliabilityTable",
    "Temperature",
    "apply_temperature",
    "central_interval",
    "conformal_hdr",
    "conformal_interval",
    "coverage",
    "fit_scale_factor",
    "fit_temperature",
    "pit",
    "pit_test",
    "recalibrate",
    "recalibrated_cdf",
    "recalibrated_log_prob",
    "recalibrated_quantile",
    "reliability_table",
    "rosenblatt",
    "stacking_weights",
]
