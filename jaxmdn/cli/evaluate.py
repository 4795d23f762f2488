"""What the commands have in common: a baseline, the scores, the table and the pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import calibration, scoring
from jaxmdn.components import FullNormal
from jaxmdn.inference import marginal
from jaxmdn.mixture import Mixture

LEVELS, HDR_LEVEL = (0.5, 0.9), 0.9
PIT_TEST = "pit test p"
#: Printed under every table of scores.
LEGEND = (
    "nll in nats, crps in the target's unit (lower is better); share of targets inside the central "
    "intervals\nand the highest-density region (hdr); p-value of the test that the predicted "
    "probabilities come true."
)


def linear_gaussian(x: np.ndarray, y: np.ndarray, x_new: np.ndarray) -> Mixture:
    """The baseline: least squares, with one normal of the residuals' covariance around it."""
    from sklearn.linear_model import LinearRegression

    regression = LinearRegression().fit(x, y)
    residuals = np.asarray(y - regression.predict(x), np.float64)
    freedom = max(1, len(x) - np.linalg.matrix_rank(np.asarray(x, np.float64)) - 1)
    covariance = residuals.T @ residuals / freedom
    loc = jnp.asarray(regression.predict(x_new), jnp.float32)[:, None, :]  # [N, 1, D]
    covariance = jnp.broadcast_to(covariance.astype(np.float32), (*loc.shape, loc.shape[-1]))
    return Mixture(
        logits=jnp.zeros(loc.shape[:2]), components=FullNormal.from_covariance(loc, covariance)
    )


def scores(model: str, density: Any, y: Any, targets: Sequence[str]) -> list[dict[str, Any]]:
    """One row per target: joint NLL (nats), CRPS (the target's unit), coverage, PIT test.

    Coverage of the central intervals and of the 90 % highest-density region; the p-value is that of
    the Kolmogorov-Smirnov test of the target's PIT.
    """
    nll, crps, cover, densest, pit = jax.tree.map(np.asarray, _scores(density, jnp.asarray(y)))
    p_value = calibration.pit_test(jnp.asarray(pit)).p_value
    return [
        {
            "model": model,
            "target": target,
            ("nll" if len(targets) == 1 else "joint nll"): float(nll),
            "crps": float(crps[d]),
            **{f"coverage_{level:.0%}": float(cover[i, d]) for i, level in enumerate(LEVELS)},
            f"hdr_{HDR_LEVEL:.0%}": float(densest[d]),
            PIT_TEST: float(p_value[d]),
        }
        for d, target in enumerate(targets)
    ]


@jax.jit
def _scores(density: Any, y: Any) -> tuple[Any, ...]:
    """Means over rows, and the PIT, as one program."""
    nll = jnp.mean(scoring.log_score(density, y))
    crps = jnp.mean(scoring.crps(density, y), axis=0)
    densest = [
        calibration.coverage(
            marginal(density, (d,)), y[:, d : d + 1], (HDR_LEVEL,), region="highest_density"
        )[0]
        for d in range(y.shape[-1])
    ]
    cover = calibration.coverage(density, y, LEVELS)
    return nll, crps, cover, densest, calibration.pit(density, y)


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """A plain-text table: names to the left, numbers to the right."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[name.replace("coverage_", "in ").replace("hdr_", "in hdr ") for name in names]]
    for row in rows:
        values = [row.get(name, "") for name in names]
        cells.append(
            [_number(value) if isinstance(value, float) else str(value) for value in values]
        )
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    numeric = [isinstance(rows[0].get(name, ""), float) for name in names]
    lines = []
    for line in cells:
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.3f}" if 1e-2 <= abs(value) < 1e4 or value == 0 else f"{value:.3g}"


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON: no NaN, no infinity."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def save_figure(figure: Any, path: Path) -> None:
    """Write a picture at a size that reads well on a page, and close it."""
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=120)
    plt.close(figure)
