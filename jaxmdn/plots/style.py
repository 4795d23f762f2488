"""What all pictures share: colours and a place to draw."""

from __future__ import annotations

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


def axes(ax: Axes | None) -> Axes:
    """The axes given, or those of a new figure that reads well at half a page's width."""
    if ax is None:
        _, ax = plt.subplots(figsize=(5.0, 3.6), layout="constrained")
    return ax
