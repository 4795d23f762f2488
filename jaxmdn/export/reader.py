"""Read a density that jaxmdn archived, with NumPy alone. This file lies beside it, and is complete.

    from reader import load
    model = load("folder")
    model.mean(x), model.quantile(x, 0.95), model.log_prob(x, y)

Inputs ``x [N, F]`` (NaN where a gap was allowed) or a table of the training's columns (of pandas,
or a dictionary of them), with categories as they were; targets ``y [N, D]``; everything is float64
and in the units of the data. ``model.mixture(x)`` holds ``weights [N, K]``, ``loc`` and ``scale``
``[N, K, D]`` and what else the families have.
"""

import json
import math
from pathlib import Path

import numpy as np

FAMILIES = ("normal", "student_t", "laplace", "logistic")
DTYPES = {"F32": "<f4", "F64": "<f8"}


def load(folder):
    """Read an archived folder."""
    folder = Path(folder)
    description = json.loads((folder / "description.json").read_text())
    if description["format"] != "numpy" or description["version"] != 1:
        raise ValueError(f"load: {folder} is no archive that this reader knows.")
    data = (folder / "arrays.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    arrays = {}
    for name, entry in json.loads(data[8:start]).items():
        first, last = (start + offset for offset in entry["data_offsets"])
        array = np.frombuffer(data[first:last], DTYPES[entry["dtype"]])
        arrays[name] = array.reshape(entry["shape"])
    return Density(description, arrays)


class Density:
    """Networks and their calibration: from a table of inputs to mixtures."""

    def __init__(self, description, arrays):
        self.description, self.arrays = description, arrays
        head = description["head"]
        self.groups, self.blocks = head.get("groups"), head.get("blocks")

    def inputs(self, x):
        """Gaps filled and marked, standardised: ``[N, E]``."""
        columns, width = self.description["columns"], self.description["num_inputs"]
        if columns is not None:
            x = [spread(*part) for part in self._parts(x, columns, width)]
            x = np.concatenate(x, axis=1)
        else:
            x = np.asarray(x, np.float64)
            if x.ndim != 2 or x.shape[1] != width:
                raise ValueError(f"x must have shape [N, {width}], got {list(x.shape)}.")
        shift, scale = self.description["standardizers"]["x"] or (0.0, 1.0)
        return (x - np.array(shift)) / np.array(scale)

    def _parts(self, x, columns, width):
        """Each column with its median, whether it had gaps, and its categories."""
        if columns["names"] is not None and (hasattr(x, "columns") or isinstance(x, dict)):
            own = [x[name] for name in columns["names"]]
        else:
            own = np.asarray(x, object)
            if own.ndim != 2 or own.shape[1] != width:
                raise ValueError(f"x must have shape [N, {width}], got {list(own.shape)}.")
            own = own.T
        return zip(own, columns["medians"], columns["gaps"], columns["categories"], strict=True)

    def raw(self, x):
        """Raw outputs of every network: ``[N, P]``, of an ensemble ``[A, G, N, P]``."""
        x = self.inputs(x)
        lead = self.arrays["output.linear.bias"].shape[:-1]
        found = [self._network(x, place) for place in np.ndindex(lead)]
        return np.array(found).reshape(*lead, *found[0].shape)

    def _network(self, x, place):
        own = {name: array[place].astype(np.float64) for name, array in self.arrays.items()}
        network = self.description["network"]
        if network["embedding"] is not None:
            name = "trunk.embedding."
            waves = x[:, :, None] * own[name + "frequency"] * 2 * np.pi + own[name + "phase"]
            mixed = np.einsum("nfm,fme->nfe", np.cos(waves), own[name + "kernel"])
            mixed = mixed + own[name + "bias"]
            x = np.concatenate([x[:, :, None], mixed], axis=2).reshape(len(x), -1)
        activation = ACTIVATIONS[network["activation"]]
        for layer in range(len(network["hidden_features"])):
            name = f"trunk.layers.{layer}."
            x = activation(x @ own[name + "kernel"] + own[name + "bias"])
        return x @ own["output.linear.kernel"] + own["output.linear.bias"]

    def mixture(self, x):
        """Weights ``[N, K]`` and parameters ``[N, K, D]`` of one calibrated mixture."""
        if self.blocks is None:
            kind = self.description["head"]["type"]
            raise ValueError(f"this reader does not know {kind}; raw(x) has its raw outputs.")
        raw = self.raw(x)
        found = self._components(raw)
        if raw.ndim == 4:
            found = self._calibrated(found)
        else:
            found["scale"] = found["scale"] * self.description.get("temperature", 1.0)
        shift, scale = self.description["standardizers"]["y"] or (0.0, 1.0)
        found["loc"] = found["loc"] * np.array(scale) + np.array(shift)
        found["scale"] = found["scale"] * np.array(scale)
        return found

    def _components(self, raw):
        head = self.description["head"]
        count, event_dim = head["num_components"], sum(len(g["outputs"]) for g in self.groups)
        logits, start = raw[..., :count], count
        logits = logits - logits.max(axis=-1, keepdims=True)
        weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        weights = head["min_weight"] + (1 - count * head["min_weight"]) * weights
        shape = (*raw.shape[:-1], count, event_dim)
        found = {"weights": weights, "loc": np.zeros(shape), "scale": np.ones(shape)}
        found["df"] = np.full(shape, np.inf)
        for group in self.groups:
            if "df" in group:
                found["df"][..., group["outputs"]] = group["df"]
        for block in self.blocks:
            size = math.prod(block["shape"])
            value = raw[..., start : start + size].reshape(*raw.shape[:-1], *block["shape"])
            start += size
            if block["kind"] == "positive":
                value = head["min_scale"] + link(head["link"], value)
            value = value * np.array(block["unit"])
            wide = (*shape[:-1], len(block["outputs"]))
            found[block["name"]][..., block["outputs"]] = np.broadcast_to(value, wide)
        return found

    def _calibrated(self, found):
        """Pool networks ``[A, G, N, K]`` with the temperature's scales, noise and outliers."""
        temperature = {k: np.array(v) for k, v in self.description["temperature"].items()}
        noise = np.maximum(temperature["noise"], self.description["floor"])
        factor = temperature["scale"][:, None, None, None, None]
        arms, each = found["weights"].shape[:2]
        found["scale"] = np.hypot(factor * found["scale"], noise)
        share = temperature["weights"] / temperature["weights"].sum() / each
        found["weights"] = found["weights"] * share[:, None, None, None]
        found = {
            name: np.moveaxis(v.reshape(arms * each, *v.shape[2:]), 0, 1).reshape(
                v.shape[2], -1, *v.shape[4:]
            )
            for name, v in found.items()
        }
        eps = temperature["outliers"]
        last = {
            "weights": np.full(len(found["loc"]), eps),
            "loc": np.broadcast_to(temperature["loc"], found["loc"][:, 0].shape),
            "scale": np.broadcast_to(temperature["spread"], found["loc"][:, 0].shape),
            "df": found["df"][:, 0],
        }
        found["weights"] = (1 - eps) * found["weights"]
        return {name: np.concatenate([v, last[name][:, None]], 1) for name, v in found.items()}

    def mean(self, x):
        """``[N, D]``; NaN where it does not exist."""
        m = self.mixture(x)
        loc = np.where(m["df"] > 1, m["loc"], np.nan)
        return (m["weights"][:, :, None] * loc).sum(axis=1)

    def variance(self, x):
        """``[N, D]``; infinite where it is."""
        m, mean = self.mixture(x), self.mean(x)
        unit = self._each(lambda family, df: family_variance(family, df), m["df"])
        within = m["scale"] ** 2 * unit + (m["loc"] - mean[:, None]) ** 2
        return (m["weights"][:, :, None] * within).sum(axis=1)

    def log_prob(self, x, y):
        """Log-density of targets ``y [N, D]``, ``[N]``, nats."""
        m = self.mixture(x)
        z = (np.asarray(y, np.float64)[:, None] - m["loc"]) / m["scale"]
        each = self._each(log_density, z, m["df"]) - np.log(m["scale"])
        with np.errstate(divide="ignore"):
            joint = np.log(m["weights"]) + each.sum(axis=2)
        top = joint.max(axis=1)
        return top + np.log(np.exp(joint - top[:, None]).sum(axis=1))

    def cdf(self, x, y):
        """``P(Y_d <= y_d)``, ``[N, D]``."""
        return self._cdf(self.mixture(x), np.asarray(y, np.float64))

    def _cdf(self, m, y):
        z = (y[:, None] - m["loc"]) / m["scale"]
        return (m["weights"][:, :, None] * self._each(distribution, z, m["df"])).sum(axis=1)

    def quantile(self, x, p):
        """The value below which the probability is ``p`` (in (0, 1)), ``[N, D]``: by halving."""
        m, step = self.mixture(x), 1.0
        spread = m["scale"].max(axis=1)
        low, high = m["loc"].min(axis=1) - spread, m["loc"].max(axis=1) + spread
        while (self._cdf(m, low) > p).any() or (self._cdf(m, high) < p).any():
            low = np.where(self._cdf(m, low) > p, low - step * spread, low)
            high = np.where(self._cdf(m, high) < p, high + step * spread, high)
            step *= 2
        for _ in range(80):
            middle = (low + high) / 2
            below = self._cdf(m, middle) < p
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return (low + high) / 2

    def _each(self, function, *arrays):
        """``function(family, ...)`` of the outputs of each family."""
        out = np.empty(arrays[0].shape)
        for group in self.groups:
            own = group["outputs"]
            out[..., own] = function(group["family"], *(a[..., own] for a in arrays))
        return out


def spread(column, median, gap, categories):
    """A column of the table as numbers, ``[N, E]``."""
    if categories:
        labels = np.array([label(value) for value in column], object)
        parts = [labels == category for category in categories]
        missing = labels == ""
    else:
        value = np.array([np.nan if own is None else own for own in column], np.float64)
        missing = np.isnan(value)
        parts = [np.where(missing, median, value) if gap else value]
    return np.stack([*parts, *([missing] if gap else [])], axis=1).astype(np.float64)


def label(value):
    """A category as text, the same for 3, 3.0 and "3"; "" for one that is missing."""
    if isinstance(value, str):
        return value
    if value is None or value != value or type(value).__name__ in ("NAType", "NaTType"):
        return ""
    number = isinstance(value, (int, float, np.number, np.bool_))
    return str(int(value)) if number and float(value).is_integer() else str(value)


def link(config, raw):
    """The positive number of a raw one."""
    name = config["name"]
    if name == "softplus":
        knee = config["knee"]
        return config["floor"] + knee * np.logaddexp(0, raw - math.log(knee))
    if name == "exp":
        return np.exp(raw)
    if name == "damped_exp":
        return np.exp(-0.5 * np.logaddexp(-2 * raw, math.log(config["reg"])))
    if name == "bounded":
        return config["lower"] + (config["upper"] - config["lower"]) * sigmoid(raw)
    if name == "sigmoid":
        return sigmoid(raw)
    raise ValueError(f"this reader does not know the link {name!r}.")


def sigmoid(x):
    """``1 / (1 + e^-x)`` without overflow."""
    return np.exp(-np.logaddexp(0, -x))


def log_density(family, z, df):
    """Log-density of the standard member."""
    if family == "normal":
        return -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    if family == "laplace":
        return -np.abs(z) - math.log(2)
    if family == "logistic":
        return -np.abs(z) - 2 * np.log1p(np.exp(-np.abs(z)))
    constant = lgamma((df + 1) / 2) - lgamma(df / 2) - 0.5 * np.log(df * math.pi)
    return constant - (df + 1) / 2 * np.log1p(z**2 / df)


def distribution(family, z, df):
    """Distribution function of the standard member."""
    if family == "normal":
        return 0.5 * erfc(-z / math.sqrt(2))
    if family == "laplace":
        return np.where(z < 0, 0.5 * np.exp(-np.abs(z)), 1 - 0.5 * np.exp(-np.abs(z)))
    if family == "logistic":
        return sigmoid(z)
    tail = 0.5 * incomplete_beta(df / 2, 0.5, df / (df + z**2))
    return np.where(z < 0, tail, 1 - tail)


def family_variance(family, df):
    """Variance of the standard member."""
    if family == "student_t":
        return np.where(df > 2, df / np.where(df > 2, df - 2, 1), np.inf)
    return {"normal": 1.0, "laplace": 2.0, "logistic": math.pi**2 / 3}[family]


def incomplete_beta(a, b, x):
    """The regularised incomplete beta function, by Lentz's continued fraction (AS 63)."""
    a, b, x = np.broadcast_arrays(np.asarray(a, np.float64), b, x)
    swap = x > (a + 1) / (a + b + 2)
    a, b, x = np.where(swap, b, a), np.where(swap, a, b), np.where(swap, 1 - x, x)
    tiny, c = 1e-300, np.ones(x.shape)
    d = 1 / (1 - (a + b) * x / (a + 1))
    total = d
    for m in range(1, 200):
        for top in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + top * d
            c = 1 + top / c
            d, c = 1 / np.where(d == 0, tiny, d), np.where(c == 0, tiny, c)
            total = total * c * d
    with np.errstate(divide="ignore"):
        front = a * np.log(x) + b * np.log1p(-x) - lgamma(a) - lgamma(b) + lgamma(a + b)
    value = np.exp(front) / a * total
    return np.where(swap, 1 - value, value)


lgamma = np.vectorize(math.lgamma, otypes=[float])
erfc = np.vectorize(math.erfc, otypes=[float])

ACTIVATIONS = {
    "celu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "relu": lambda x: np.maximum(x, 0),
    "selu": lambda x: (
        1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0)))
    ),
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "softplus": lambda x: np.logaddexp(0, x),
    "tanh": np.tanh,
}
