"""Draw the small pictures of the site: ``python docs/draw.py``. Readable in light and dark."""

from pathlib import Path

import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import jaxmdn
from jaxmdn import components as c

PICTURES = Path(__file__).parent / "pictures"
INK, FILL, ACCENT = "#7c8794", "#2a7fb5", "#d9822b"  # each visible on white and on black


def one(family: type, **parameters: float) -> jaxmdn.Mixture:
    """One component over one output."""
    arrays = {
        name: jnp.full((1, 1), value) if name in family.event_ranks else value
        for name, value in parameters.items()
    }
    return jaxmdn.Mixture(logits=jnp.zeros(1), components=family(**arrays))


#: Name of the picture -> densities to draw in it, and the grid.
REAL, POSITIVE = np.linspace(-5, 5, 301), np.linspace(0.005, 5, 301)
UNIT = np.linspace(0.005, 0.995, 301)
COUNTS = np.arange(0.0, 16.0)
FAMILIES = {
    "normal": ([one(c.Normal, loc=0.0, scale=1.0)], REAL),
    "laplace": ([one(c.Laplace, loc=0.0, scale=1.0)], REAL),
    "logistic": ([one(c.Logistic, loc=0.0, scale=0.7)], REAL),
    "student_t": ([one(c.StudentT, loc=0.0, scale=0.8, df=2.0)], REAL),
    "asymmetric_laplace": ([one(c.AsymmetricLaplace, loc=-1.0, scale=0.8, asymmetry=0.5)], REAL),
    "lognormal": ([one(c.LogNormal, loc=0.3, scale=s) for s in (0.4, 1.0)], POSITIVE),
    "gamma": ([one(c.Gamma, concentration=a, rate=a / 1.5) for a in (1.0, 4.0)], POSITIVE),
    "weibull": ([one(c.Weibull, concentration=a, scale=1.7) for a in (1.2, 3.5)], POSITIVE),
    "beta": (
        [one(c.Beta, concentration1=a, concentration0=b) for a, b in ((2.0, 5.0), (0.6, 0.6))],
        UNIT,
    ),
    "logit_normal": (
        [one(c.LogitNormal, loc=m, scale=s) for m, s in ((-0.8, 0.7), (0.0, 2.2))],
        UNIT,
    ),
    "truncated_normal": (
        [one(c.TruncatedNormal, loc=0.4, scale=1.3, lower=0.0)],
        np.linspace(0, 5, 301),
    ),
    "von_mises": ([one(c.VonMises, loc=2.2, concentration=2.0)], np.linspace(-np.pi, np.pi, 301)),
    "poisson": ([one(c.Poisson, rate=5.0)], COUNTS),
    "negative_binomial": ([one(c.NegativeBinomial, rate=5.0, concentration=2.0)], COUNTS),
    "zero_inflated": (
        [one(c.ZeroInflated, logit=-0.8, base=c.Poisson(rate=jnp.full((1, 1), 6.0)))],
        COUNTS,
    ),
    "hurdle": (
        [
            one(
                c.Hurdle,
                logit=-0.6,
                base=c.Gamma(concentration=jnp.full((1, 1), 3.0), rate=jnp.full((1, 1), 1.5)),
            )
        ],
        POSITIVE,
    ),
    "bernoulli": ([one(c.Bernoulli, logit=0.8)], np.arange(0.0, 2.0)),
    "categorical": (None, np.arange(5.0)),
    "discretized_logistic": (
        [one(c.DiscretizedLogistic, loc=9.0, scale=1.6, lower=0.0, upper=15.0, num_bins=16)],
        COUNTS,
    ),
}


def draw_family(name: str) -> None:
    """A density (lines) or probabilities (bars), without numbers."""
    densities, grid = FAMILIES[name]
    figure, ax = plt.subplots(figsize=(1.5, 0.62))
    for density, color in zip(densities or [None], (FILL, ACCENT), strict=False):
        if density is None:
            values = np.array([0.1, 0.35, 0.2, 0.05, 0.3])
        else:
            values = np.exp(np.asarray(jaxmdn.log_prob(density, jnp.asarray(grid)[:, None])))
        if len(grid) < 20:
            ax.bar(grid, values, width=0.6, color=color)
        else:
            ax.plot(grid, values, color=color, lw=1.8)
            ax.fill_between(grid, values, color=color, alpha=0.25, lw=0)
        if name == "hurdle":
            ax.plot([0, 0], [0, 0.4], color=color, lw=4)
    ax.spines[["left", "top", "right"]].set_visible(False)
    ax.spines["bottom"].set_color(INK)
    ax.set(xticks=[], yticks=[], ylim=(0, None))
    save(figure, name)


#: Question of each row, and the answers: what the target is -> the family.
CHOICES = (
    ("one of C classes", "CategoricalHead", "#6b4fa0"),
    ("yes or no", "bernoulli", "#6b4fa0"),
    ("a count", "poisson, negative_binomial; too many zeros: zero_inflated", "#6b4fa0"),
    ("a level (0 to 255, stars)", "discretized_logistic", "#6b4fa0"),
    ("an angle, an hour of the day", "von_mises", FILL),
    (
        "a share, or between bounds",
        "logit_normal, beta; on the bounds: truncated_normal",
        FILL,
    ),
    ("zero, or else an amount", "hurdle over gamma or lognormal", FILL),
    ("positive", "lognormal, gamma, weibull; or the normal of its logarithm", FILL),
    ("any number, with outliers", "student_t, laplace, logistic", FILL),
    ("any number", "NormalHead", FILL),
)


def draw_choice() -> None:
    """A ladder of questions from top to bottom: the first yes decides."""
    figure, ax = plt.subplots(figsize=(7.2, 5.6))
    for i, (question, answer, color) in enumerate(CHOICES):
        y = -i
        box = {"boxstyle": "round,pad=0.35", "fc": "#4a5560", "ec": "none"}
        ax.text(0, y, question, va="center", ha="left", color="white", fontsize=10.5, bbox=box)
        ax.annotate(
            "", (5.95, y), (5.35, y), arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.6}
        )
        answer = answer.replace("; ", ";\n") if len(answer) > 42 else answer
        box = {"boxstyle": "round,pad=0.35", "fc": color, "ec": "none"}
        ax.text(6.1, y, answer, va="center", ha="left", color="white", fontsize=10.5, bbox=box)
        if i + 1 < len(CHOICES):
            ax.annotate(
                "",
                (0.3, y - 0.72),
                (0.3, y - 0.28),
                arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.2},
            )
    ax.set(xlim=(-0.2, 11.6), ylim=(-len(CHOICES) + 0.4, 0.6))
    ax.axis("off")
    save(figure, "which_head")


def draw_fused() -> None:
    """What is stored by the plain composition, by ``nll`` and by ``linear_nll``."""
    figure, ax = plt.subplots(figsize=(7.2, 3.3))
    rows = (
        (
            "plain",
            (("hidden", 1), ("raw", 1), ("w, loc, scale", 1), ("terms", 1), ("gradients", 1)),
        ),
        ("nll", (("hidden", 1), ("raw", 1), ("w, loc, scale", 0), ("terms", 0), ("gradient", 1))),
        ("linear_nll", (("hidden", 1), ("raw", 0), ("w, loc, scale", 0), ("terms", 0), ("", 0))),
    )
    for i, (name, blocks) in enumerate(rows):
        ax.text(
            -0.15, -i, name, ha="right", va="center", color=INK, fontsize=11, family="monospace"
        )
        for j, (label, whole) in enumerate(blocks):
            if not label:
                continue
            height, color = (0.72, FILL) if whole else (0.2, ACCENT)
            ax.add_patch(
                plt.Rectangle((j * 1.25, -i - height / 2), 1.05, height, fc=color, ec="none")
            )
            ax.text(
                j * 1.25 + 0.52,
                -i if whole else -i + 0.24,
                label,
                ha="center",
                va="center",
                color="white" if whole else INK,
                fontsize=8.5,
            )
    ax.add_patch(plt.Rectangle((0, -2.95), 0.25, 0.22, fc=FILL))
    ax.text(0.35, -2.84, "an array of all N rows", va="center", color=INK, fontsize=9)
    ax.add_patch(plt.Rectangle((2.9, -2.9), 0.25, 0.1, fc=ACCENT))
    ax.text(
        3.25, -2.84, "a block of rows at a time, never stored", va="center", color=INK, fontsize=9
    )
    ax.set(xlim=(-1.4, 6.3), ylim=(-3.1, 0.5))
    ax.axis("off")
    save(figure, "fused")


def save(figure: plt.Figure, name: str) -> None:
    figure.savefig(
        PICTURES / f"{name}.svg",
        transparent=True,
        bbox_inches="tight",
        pad_inches=0.02,
        metadata={"Date": None},
    )
    plt.close(figure)


if __name__ == "__main__":
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "jaxmdn"  # the same file each time
    PICTURES.mkdir(exist_ok=True)
    for family in FAMILIES:
        draw_family(family)
    draw_choice()
    draw_fused()
