"""What is measured: operations and the shapes they run at."""

from __future__ import annotations

import dataclasses

from jaxmdn import NormalHead

# Operation -> what a table calls it. The order is the order in which they run.
OPERATIONS = {
    "nll_gradient": "Value and gradient of the mean NLL with respect to the raw outputs",
    "nll": "Mean NLL from raw outputs",
    "log_prob": "Log-density of every row from raw outputs",
    "linear_nll_gradient": "Output layer, mean NLL and gradient of features, kernel and bias",
    "linear_nll": "Output layer and mean NLL",
    "sample": "Sampling from raw outputs",
    "quantile": "Quantiles of the marginals from raw outputs",
    "training_step": "Training step of a network with two hidden layers (Adam)",
    "ensemble_step": "Training step of ten networks at once",
    "fit_epoch": "Epoch of `fit`, batches of 256 rows (Adam)",
}
# Sweep -> the size that varies and the power of it that the cost must grow with.
SWEEPS = {
    "rows": ("rows", 1),
    "components": ("components", 1),
    "dimensions": ("dim", 1),
    "dimensions, full": ("dim", 2),
}
MEMBERS = 10
FEATURES = 8  # inputs of the trained networks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One operation at one shape.

    Attributes:
      operation: a key of ``OPERATIONS``.
      rows, components, dim: N, K, D.
      covariance: ``"diagonal"`` or ``"full"``.
      link: of the scales: ``"softplus"`` with jaxmdn's own floor, the default head's, or ``"exp"``
        without a floor, as many write it.
      dtype: of the raw outputs, or of the features and the kernel.
      hidden: features of the last hidden layer, for the linear operations and the networks.
      draws: samples from each row's density.
      sweep: a key of ``SWEEPS``, or ``"figures"``: one of the shapes that tables show.
      peers: whether other libraries take part.
    """

    operation: str
    rows: int
    components: int
    dim: int
    covariance: str = "diagonal"
    link: str = "softplus"
    dtype: str = "float32"
    hidden: int = 0
    draws: int = 0
    sweep: str = "figures"
    peers: bool = True

    @property
    def head(self) -> NormalHead:
        """The head that all contenders stand for: the default one, but for ``link="exp"``."""
        own = {} if self.link == "softplus" else {"scale_link": "exp", "min_scale": 0.0}
        return NormalHead(self.components, self.dim, covariance=self.covariance, **own)

    @property
    def label(self) -> str:
        """Shape and whatever differs from the usual, for tables."""
        parts = [f"{self.rows}, {self.components}, {self.dim} {self.covariance}"]
        parts += [f"H = {self.hidden}"] * bool(self.hidden)
        parts += [f"{self.draws} draws"] * bool(self.draws)
        parts += [self.link] * (self.link != "softplus") + [self.dtype] * (self.dtype != "float32")
        return ", ".join(parts)

    @property
    def linear(self) -> bool:
        """Whether the output layer is part of the operation."""
        return self.operation.startswith("linear")

    @property
    def is_step(self) -> bool:
        """Whether networks are trained."""
        return self.operation.endswith(("step", "epoch"))

    @property
    def gradient(self) -> bool:
        """Whether a gradient is part of the result."""
        return self.operation.endswith("gradient")


# N, K, D, covariance: what tables show, and what keeps an accelerator busy.
SMALL = ((65536, 5, 1, "diagonal"), (256, 5, 2, "diagonal"))
FIGURES = (
    (65536, 32, 1, "diagonal"),
    (16384, 16, 16, "diagonal"),
    (4096, 64, 32, "diagonal"),
    (2048, 8, 16, "full"),
    *SMALL,
)
LARGE_FIGURES = (
    (2**20, 32, 1, "diagonal"),
    (2**18, 16, 16, "diagonal"),
    (2**14, 8, 32, "full"),
    *SMALL,
)
# With H.
LAYERS = (
    ((16384, 16, 16, "diagonal"), 256),
    ((65536, 5, 1, "diagonal"), 64),
    ((2048, 8, 16, "full"), 256),
)
LARGE_LAYERS = tuple((shape, 256) for shape in LARGE_FIGURES[:3])
SAMPLED = ((4096, 16, 16, "diagonal"), (4096, 32, 1, "diagonal"), (1024, 8, 8, "full"))
QUICK_FIGURES = ((8192, 8, 1, "diagonal"), (1024, 16, 8, "diagonal"), (256, 4, 8, "full"))


def suite(*, quick: bool = False, large: bool = False) -> tuple[Case, ...]:
    """Return all cases.

    Args:
      quick: few and small ones, for a minute's look.
      large: for an accelerator. The sweeps are jaxmdn's and plain JAX's alone.
    """
    steps = [
        _case(operation, (256, 5, 2, "diagonal"), hidden=64)
        for operation in ("training_step", "ensemble_step")
    ]
    steps.append(_case("fit_epoch", (2048 if quick else 2**16, 5, 2, "diagonal"), hidden=64))
    if quick:
        return (*_quick(), *steps, *_sweeps(_QUICK_SWEEPS, peers_up_to=0))
    sweeps = _sweeps(_WHOLE_SWEEPS, peers_up_to=0 if large else 10**6)
    return (*_whole(large), *steps, *_variants(large), *sweeps)


def _whole(large: bool) -> list[Case]:
    """Every operation once, so that a run that is cut short has them."""
    figures, layers = (LARGE_FIGURES, LARGE_LAYERS) if large else (FIGURES, LAYERS)
    cases = [
        _case(name, shape) for shape in figures for name in ("nll_gradient", "nll", "log_prob")
    ]
    for shape, hidden in layers:
        for dtype in ("float32", "bfloat16"):
            for operation in ("linear_nll_gradient", "linear_nll"):
                cases.append(_case(operation, shape, hidden=hidden, dtype=dtype, peers=False))
    cases += [_case("sample", shape, draws=100) for shape in SAMPLED]
    for shape in ((65536, 8, 1, "diagonal"), (4096, 16, 16, "diagonal")):
        cases.append(_case("quantile", shape, peers=False))
    return cases


def _variants(large: bool) -> list[Case]:
    """The likelihoods with another link, and from raw outputs of another dtype."""
    return [
        _case(operation, shape, **options)
        for shape in (LARGE_FIGURES if large else FIGURES)
        for options in ({"link": "exp"}, {"dtype": "bfloat16", "peers": False})
        for operation in ("nll_gradient", "nll")
    ]


def _quick() -> list[Case]:
    first, second, _ = QUICK_FIGURES
    return [
        *(_case("nll_gradient", shape) for shape in QUICK_FIGURES),
        _case("nll", first, peers=False),
        _case("log_prob", second),
        _case("nll_gradient", first, dtype="bfloat16", peers=False),
        _case("linear_nll_gradient", (4096, 8, 8, "diagonal"), hidden=64, peers=False),
        _case("sample", (512, 16, 8, "diagonal"), draws=20),
        _case("quantile", (4096, 8, 1, "diagonal"), peers=False),
    ]


_WHOLE_SWEEPS = {
    "rows": [(10**power, 5, 1, "diagonal") for power in range(3, 8)],
    "components": [(8192, 2**power, 2, "diagonal") for power in range(2, 9)],
    "dimensions": [(4096, 8, 2**power, "diagonal") for power in range(7)],
    "dimensions, full": [(1024, 4, 2**power, "full") for power in range(1, 7)],
}
_QUICK_SWEEPS = {
    "rows": [(rows, 5, 1, "diagonal") for rows in (2048, 16384, 131072)],
    "components": [(4096, components, 2, "diagonal") for components in (8, 64)],
    "dimensions": [(2048, 8, dim, "diagonal") for dim in (4, 16)],
    "dimensions, full": [(512, 4, dim, "full") for dim in (4, 8)],
}


def _case(operation: str, shape: tuple[int, int, int, str], **options: object) -> Case:
    sizes = dict(zip(("rows", "components", "dim", "covariance"), shape, strict=True))
    return Case(operation=operation, **sizes, **options)


def _sweeps(sweeps: dict[str, list[tuple]], *, peers_up_to: int) -> list[Case]:
    return [
        _case("nll_gradient", shape, sweep=sweep, peers=shape[0] <= peers_up_to)
        for sweep, shapes in sweeps.items()
        for shape in shapes
    ]
