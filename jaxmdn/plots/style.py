"""What all pictures share: colours and a place to draw."""

from __future__ import annotations

import numpy as np

try:
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
except ImportError as error:
    raise ImportError(
        "jaxmdn.plots needs matplotlib; install it with: pip install 'jaxmdn[plot]'."
    ) from error

BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#D55E00", "#009E73", "#000000"
#: The Okabe-Ito palette, in an order whose neighbours differ in lightness too.
PALETTE = (BLUE, "#E69F00", GREEN, "#CC79A7", "#56B4E9", ORANGE, BLACK, "#999999")
STYLES = ("-", "--", "-.", ":")
#: Of positive values the largest over the median from which only a logarithmic axis shows both.
HEAVY = 30.0


def look(number: int, *, beside_others: bool = False) -> tuple[str, str]:
    """Style and colour of a line, different for 24 numbers; beside others without their colours."""
    own = tuple(c for c in PALETTE if not beside_others or c not in (BLUE, BLACK))
    turn, place = divmod(number, len(own))
    return STYLES[(beside_others + place + turn) % len(STYLES)], own[place]


def is_heavy(values: np.ndarray) -> bool:
    """Whether positive values need a logarithmic axis."""
    return bool((values > 0).all() and values.max() > HEAVY * np.median(values))


def axes(ax: Axes | None) -> Axes:
    """The axes given, or those of a new figure that reads well at half a page's width."""
    if ax is None:
        _, ax = plt.subplots(figsize=(5.0, 3.6), layout="constrained")
    return ax
