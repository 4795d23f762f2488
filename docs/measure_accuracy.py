"""Measure every family beside its oracle: ``python docs/measure_accuracy.py``, a few minutes.

Writes the table of the page on accuracy. Families, parameters, targets and oracles are those of the
tests' contract, which is read from ``tests/``; a test measures again.
"""

import re
import sys
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "explanation" / "accuracy_table.md"
#: Column of the table -> what it is the worst of.
COLUMNS = {
    "log-density": ("log_prob",),
    "cdf, survival": ("cdf", "survival"),
    "their logarithms": ("log_cdf", "log_survival"),
    "mean, variance": ("mean", "variance"),
}
SLOPES = "slopes of all these"
LADDER = [float(mantissa * 10**power) for power in range(12) for mantissa in (1, 2, 5)]


def units(contract, case, dtype):
    """The largest error in each column: rounding units of the size that errors scale with."""
    *_, exact, (values, slopes, *_) = contract.typical(case, dtype)

    def error(found, exact, size):
        some = np.isfinite(exact) & (size > 0)
        gap = np.abs(found[some] - exact[some]) - np.finfo(dtype).tiny  # below which there is zero
        return float(np.max(gap / np.broadcast_to(size, exact.shape)[some], initial=0.0))

    worst = {
        column: max(error(values[n], exact.values[n], exact.value_sizes[n]) for n in names)
        for column, names in COLUMNS.items()
    }
    worst[SLOPES] = max(
        error(slopes[parameter][n], value, exact.slope_sizes[parameter][n])
        for parameter, own in exact.slopes.items()
        for n, value in own.items()
    )
    return {column: value / float(np.finfo(dtype).eps) for column, value in worst.items()}


def rounded_up(number):
    """The next of 1, 2, 5, 10, 20, ..."""
    return next(step for step in LADDER if number <= step)


def row(contract, case):
    """The cells of a family: in float64 / in float32."""
    by_dtype = [units(contract, case, dtype) for dtype in (np.float64, np.float32)]
    return [" / ".join(f"{rounded_up(own[c]):g}" for own in by_dtype) for c in by_dtype[0]]


def main():
    """Write the table."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "components")]
    jax.config.update("jax_enable_x64", True)
    import cases
    import contract

    heading = "| ".join(["", "family ", *(f"{name} " for name in (*COLUMNS, SLOPES))]) + "|"
    lines = [heading, re.sub(r"[^|]+", "---", heading)]
    for case in cases.CASES:
        lines.append(f"| {case.name} | {' | '.join(row(contract, case))} |")
        print(lines[-1], flush=True)
    TABLE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
