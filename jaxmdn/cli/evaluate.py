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
from jaxmdn.heads import initializers
from jaxmdn.inference import marginal
from jaxmdn.mixture import Mixture
from jaxmdn.train.standardize import to_unit

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


def marginal_density(result: Any, y: np.ndarray, count: int) -> Any:
    """The other baseline: the targets' own distribution, without inputs, for so many rows.

    It is what ``fit`` starts from: the head's mixture with the moments (of classes and counts the
    frequencies) of the targets ``y [N, D]`` to train on.
    """
    y_map, head = result.y_standardizer, result.model.head
    z = jnp.asarray(y) if y_map is None else y_map(y)
    raw = initializers.from_targets(jax.random.key(0), head, z)
    density = head(jnp.broadcast_to(raw, (count, raw.shape[0])))
    return density if y_map is None else to_unit(density, y_map)


def scores(model: str, density: Any, y: Any, targets: Sequence[str]) -> list[dict[str, Any]]:
    """One row per target: joint NLL (nats), CRPS (the target's unit), coverage, PIT test.

    Coverage of the central intervals and, where there is a density, of the 90 % highest-density
    region; the p-value is that of the Kolmogorov-Smirnov test of the target's PIT, randomised where
    its cdf jumps.
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
            **({f"hdr_{HDR_LEVEL:.0%}": float(densest[d])} if d in densest else {}),
            PIT_TEST: float(p_value[d]),
        }
        for d, target in enumerate(targets)
    ]


@jax.jit
def _scores(density: Any, y: Any) -> tuple[Any, ...]:
    """Means over rows, and the PIT, as one program."""
    nll = jnp.mean(scoring.log_score(density, y))
    crps = jnp.mean(scoring.crps(density, y), axis=0)
    densest = {
        d: calibration.coverage(
            marginal(density, (d,)), y[:, d : d + 1], (HDR_LEVEL,), region="highest_density"
        )[0]
        for d in range(y.shape[-1])
        if not density.jumps[d]
    }
    cover = calibration.coverage(density, y, LEVELS)
    return nll, crps, cover, densest, calibration.pit(density, y, key=jax.random.key(0))


def class_scores(model: str, density: Any, label: Any, target: str) -> list[dict[str, Any]]:
    """One row: NLL (nats), Brier score, share of right classes, and what was expected of it."""
    label = np.asarray(label)[:, 0]
    share = class_probabilities(density)  # [N, C]
    right = np.take_along_axis(share, label[:, None], axis=1)[:, 0]
    brier = 1 - 2 * right + (share**2).sum(axis=1)
    return [
        {
            "model": model,
            "target": target,
            "nll": float(-np.mean(np.log(np.maximum(right, 1e-300)))),
            "brier": float(brier.mean()),
            "accuracy": float(np.mean(share.argmax(axis=1) == label)),
            "expected": float(share.max(axis=1).mean()),
        }
    ]


def class_probabilities(density: Any) -> np.ndarray:
    """Probabilities of the classes ``0 .. C - 1``, ``[N, C]``, in float64."""
    classes = np.arange(int(density.support[0].upper) + 1, dtype=np.int32)
    values = jax.vmap(density.log_prob)(classes[:, None, None])  # [C, N]
    return np.exp(np.asarray(values, np.float64)).T


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
    numeric = [any(isinstance(row.get(name), float) for row in rows) for name in names]
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


CLASS_LEGEND = (
    "nll in nats, brier score (lower is better); share of rows whose likeliest class was right, "
    "and what the\nprobabilities made expect of it."
)


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON: no NaN, no infinity, null in their place."""

    def strict(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strict(part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [strict(part) for part in value]
        return None if isinstance(value, float) and not np.isfinite(value) else value

    path.write_text(json.dumps(strict(content), indent=2, allow_nan=False) + "\n")


def save_figure(figure: Any, path: Path) -> None:
    """Write a picture at a size that reads well on a page, and close it."""
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=120)
    plt.close(figure)
