"""The von Mises density of the representative in ``[-pi, pi]``: exact by quadrature."""

from __future__ import annotations

import numpy as np
from oracle_continuous import LD, TAILS, Integrated
from scipy import stats

PI = LD("3.14159265358979323846")


def kernel(y, loc, concentration):
    return -2 * concentration * np.sin((y - loc) / 2) ** 2


def cuts(loc, concentration):
    """Pieces of a standard deviation, on both sides of the cut at pi."""
    width = 1 / np.sqrt(np.maximum(concentration, LD(0.5)))
    steps = np.linspace(-16, 16, 33, dtype=LD).reshape(-1, *(1,) * loc.ndim) * width
    turns = [np.clip(loc + 2 * PI * turn + steps, -PI, PI) for turn in (-1, 0, 1)]
    ends = np.broadcast_to(np.array([-PI, PI]).reshape(-1, *(1,) * loc.ndim), (2, *loc.shape))
    return np.concatenate([ends, *turns])


class Representative:
    """SciPy's law, which is one of the whole line, cut at ``-pi`` and ``pi``."""

    def __init__(self, loc, concentration):
        self.loc, self.concentration = loc, concentration
        wide = np.clip(concentration, 1e-9, 1e3)
        self.wide, self.narrow = (
            stats.vonmises(wide),
            stats.norm(scale=np.maximum(concentration, 1) ** -0.5),
        )

    def whole(self, y):
        """The cdf on the whole line, which rises by one a turn."""
        turn = np.round((y - self.loc) / (2 * np.pi))
        z = y - self.loc - 2 * np.pi * turn
        return turn + np.where(self.concentration > 1e3, self.narrow.cdf(z), self.wide.cdf(z))

    def cdf(self, y):
        y = np.clip(y, -np.pi, np.pi)
        return np.clip(self.whole(y) - self.whole(-np.pi), 0, 1)

    def logpdf(self, y):
        return self.wide.logpdf(y - self.loc)

    def ppf(self, p):
        low = np.full(np.broadcast_shapes(np.shape(p), np.shape(self.loc)), -np.pi)
        high = -low
        for _ in range(60):
            middle = 0.5 * (low + high)
            below = self.cdf(middle) < p
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return 0.5 * (low + high)


class Circular(Integrated):
    """A last place of the target, of the location and of pi is that of a turn."""

    def magnitudes(self, parameters, y):
        turn = np.full_like(y, np.pi)
        return {**parameters, "loc": turn, "y": turn}

    def exact(self, parameters, y):
        """What is taken off or put on at the cut counts in sizes as the tails themselves do."""
        exact, law = super().exact(parameters, y), self.law(**parameters)
        height = kernel(PI, **parameters) - kernel(y, **parameters) + exact.values["log_prob"]
        rest = np.pi - np.abs(parameters["loc"])
        beyond = np.where(law.concentration > 1e3, law.narrow.sf(rest), law.wide.sf(rest))
        cut = np.exp(height) + beyond
        for name in TAILS:
            exact.value_sizes[name] += cut
            exact.value_sizes[f"log_{name}"] += cut / np.maximum(exact.values[name], 1e-300)
        for name in ("mean", "variance"):
            exact.value_sizes[name] += cut * (1 + np.pi**2)
        for name, by_output in exact.slope_sizes.items():
            for output in by_output:
                if output != "log_prob":
                    log = "log" in output
                    tail = (
                        np.maximum(exact.values[output.removeprefix("log_")], 1e-300) if log else 1
                    )
                    own = log * np.abs(exact.slopes[name][output])
                    by_output[output] += (1 + exact.natural[name] + own) * cut / tail
        return exact

    def integration(self, parameters, count):
        """A rule that is exact for periodic functions, over any turn."""
        y = -400.0 + 2 * np.pi * np.arange(count)[:, None] / count
        return y + np.zeros((1, 2)), np.full((count, 1), 2 * np.pi / count)


CIRCULAR = Circular(law=Representative, formula=kernel, cuts=cuts)
