"""A single network with a normal head as an ONNX graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxmdn.export import archive
from jaxmdn.heads import NormalHead
from jaxmdn.train import Columns, EnsembleResult

OPSET = 17
KNOWN = ("parameters", "mean", "std", "log_prob")


class Graph:
    """Nodes and constants, in order; each call adds some and returns the last one's name."""

    def __init__(self, onnx: Any) -> None:
        self.onnx, self.nodes, self.constants = onnx, [], []  # type: ignore[var-annotated]

    def constant(self, value: Any, dtype: str = "float32") -> str:
        """A constant array."""
        name = f"constant_{len(self.constants)}"
        array = np.ascontiguousarray(np.asarray(value, dtype))
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def add(self, kind: str, *inputs: Any, name: str | None = None, **attributes: Any) -> str:
        """A node; inputs that are numbers or arrays become constants."""
        own = [part if isinstance(part, str) else self.constant(part) for part in inputs]
        name = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, own, [name], **attributes))
        return name

    def reshape(self, value: str, *shape: int) -> str:
        """The same numbers, ``[N, *shape]``."""
        return self.add("Reshape", value, self.constant([-1, *shape], "int64"))

    def total(self, value: str, axis: int, name: str | None = None) -> str:
        """The sum along an axis."""
        axes = self.constant([axis], "int64")
        return self.add("ReduceSum", value, axes, name=name, keepdims=0)

    def cut(self, value: str, start: int, stop: int) -> str:
        """Columns of ``[N, P]``."""
        ends = [self.constant([end], "int64") for end in (start, stop, 1)]
        return self.add("Slice", value, *ends)

    def softplus(self, x: str) -> str:
        """``log(1 + e^x)``, of large x too."""
        decay = self.add("Exp", self.add("Neg", self.add("Abs", x)))
        return self.add("Add", self.add("Relu", x), self.add("Log", self.add("Add", 1.0, decay)))

    def activation(self, name: str, x: str) -> str:
        """One of ``jaxmdn.nn.ACTIVATIONS``."""
        if name == "silu":
            return self.add("Mul", x, self.add("Sigmoid", x))
        if name == "softplus":
            return self.softplus(x)
        if name == "gelu":
            cube = self.add("Mul", x, self.add("Mul", x, x))
            inner = self.add("Add", x, self.add("Mul", cube, 0.044715))
            wave = self.add("Tanh", self.add("Mul", inner, np.sqrt(2 / np.pi)))
            return self.add("Mul", self.add("Mul", x, 0.5), self.add("Add", wave, 1.0))
        kinds: dict[str, tuple[str, dict[str, Any]]] = {
            "celu": ("Celu", {}),
            "elu": ("Elu", {}),
            "leaky_relu": ("LeakyRelu", {"alpha": 0.01}),
            "relu": ("Relu", {}),
            "selu": ("Selu", {}),
            "sigmoid": ("Sigmoid", {}),
            "tanh": ("Tanh", {}),
        }
        kind, attributes = kinds[name]
        return self.add(kind, x, **attributes)

    def link(self, config: dict[str, Any], raw: str) -> str:
        """The positive number of a raw one."""
        name = config["name"]
        if name == "softplus":
            bent = self.softplus(self.add("Sub", raw, np.log(config["knee"])))
            return self.add("Add", self.add("Mul", bent, config["knee"]), config["floor"])
        if name == "exp":
            return self.add("Exp", raw)
        if name == "damped_exp":  # e^raw / sqrt(1 + reg e^(2 raw)) = exp(raw - softplus(...) / 2)
            inner = self.add("Add", self.add("Mul", raw, 2.0), np.log(config["reg"]))
            half = self.add("Mul", self.softplus(inner), 0.5)
            return self.add("Exp", self.add("Sub", raw, half))
        width = config.get("upper", 1.0) - config.get("lower", 0.0)
        return self.add(
            "Add", self.add("Mul", self.add("Sigmoid", raw), width), config.get("lower", 0.0)
        )


def write(
    folder: Path,
    result: Any,
    outputs: tuple[str, ...],
    levels: tuple[float, ...],
    columns: Columns | None,
) -> dict[str, Any]:
    """Write ``model.onnx``; return what the description says of it."""
    try:
        import onnx
    except ModuleNotFoundError:
        raise ValueError(
            "export.save: format 'onnx' needs the package onnx; pip install 'jaxmdn[export]'."
        ) from None
    head = result.model.head
    normal = isinstance(head, NormalHead) and head.covariance in ("diagonal", "isotropic")
    if isinstance(result, EnsembleResult) or not normal:
        raise ValueError(
            "export.save: format 'onnx' holds a single network with a NormalHead of diagonal or "
            f"isotropic covariance, got {result!r}; use format='jax'."
        )
    beyond = [output for output in outputs if output not in KNOWN]
    if beyond:
        raise ValueError(
            f"export.save: format 'onnx' has the outputs {KNOWN}, got {beyond[0]!r}; quantiles "
            f"follow from the parameters, or use format='jax'."
        )
    described, arrays = archive.describe(result, columns)
    graph, own = Graph(onnx), described["head"]
    raw = _network(graph, described, arrays)
    K, D = head.num_components, head.event_dim
    weights = graph.add("Softmax", graph.cut(raw, 0, K), axis=1)
    if head.min_weight:
        share = graph.add("Mul", weights, 1 - K * head.min_weight)
        weights = graph.add("Add", share, head.min_weight)
    shift, unit = described["standardizers"]["y"] or ([0.0] * D, [1.0] * D)
    start, parts = K, {}
    for block in own["blocks"]:
        size = int(np.prod(block["shape"]))
        value = graph.reshape(graph.cut(raw, start, start + size), *block["shape"])
        start += size
        if block["kind"] == "positive":
            value = graph.add("Add", graph.link(own["link"], value), own["min_scale"])
            factor = described["temperature"] * np.ones((head.num_components, 1))
            value = graph.add("Mul", value, factor * unit)
        else:
            value = graph.add("Add", graph.add("Mul", value, unit), shift)
        parts[block["name"]] = value
    found = _answers(graph, weights, parts["loc"], parts["scale"], outputs)
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    shapes = {"weights": [K], "loc": [K, D], "scale": [K, D], "mean": [D], "std": [D]}
    inputs = {"x": described["num_inputs"], **({"y": D} if "log_prob" in outputs else {})}
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "jaxmdn",
            [helper.make_tensor_value_info(n, floats, ["rows", w]) for n, w in inputs.items()],
            [helper.make_tensor_value_info(n, floats, ["rows", *shapes.get(n, [])]) for n in found],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "model.onnx")
    found_columns = described["columns"]
    return {"opset": OPSET, "inputs": list(inputs), "outputs": found, "columns": found_columns}


def _network(graph: Graph, described: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """From ``x`` to raw outputs."""
    network, x = described["network"], _spread(graph, described["columns"])
    if described["standardizers"]["x"] is not None:
        shift, scale = described["standardizers"]["x"]
        x = graph.add("Div", graph.add("Sub", x, shift), scale)
    if network["embedding"] is not None:
        own = {name: arrays[f"trunk.embedding.{name}"] for name in ("frequency", "phase", "bias")}
        kernel = arrays["trunk.embedding.kernel"]  # [F, M, E]
        wide = graph.reshape(x, network["in_features"], 1)
        turns = graph.add("Mul", wide, 2 * np.pi * own["frequency"])
        waves = graph.add("Cos", graph.add("Add", turns, own["phase"]))  # [N, F, M]
        column = graph.reshape(waves, *waves_shape(kernel))
        mixed = graph.reshape(graph.add("MatMul", column, kernel), *kernel.shape[::2])
        mixed = graph.add("Add", mixed, own["bias"])
        x = graph.add("Concat", wide, mixed, axis=2)
        x = graph.reshape(x, kernel.shape[0] * (1 + kernel.shape[2]))
    for layer in range(len(network["hidden_features"])):
        kernel, bias = (arrays[f"trunk.layers.{layer}.{part}"] for part in ("kernel", "bias"))
        x = graph.activation(network["activation"], graph.add("Gemm", x, kernel, bias))
    kernel, bias = arrays["output.linear.kernel"], arrays["output.linear.bias"]
    return graph.add("Gemm", x, kernel, bias)


def _spread(graph: Graph, columns: dict[str, Any] | None) -> str:
    """``x`` with gaps filled and marked and categories as indicators (``Columns.spread``)."""
    if columns is None or not (any(columns["gaps"]) or any(columns["categories"])):
        return "x"
    parts: list[str] = []
    table = zip(columns["medians"], columns["gaps"], columns["categories"], strict=True)
    for number, (median, gap, known) in enumerate(table):
        own = graph.cut("x", number, number + 1)
        missing = graph.add("IsNaN", own)
        if known:
            codes = np.arange(len(known), dtype=np.float32)[None]
            parts.append(graph.add("Cast", graph.add("Equal", own, codes), to=1))  # to float32
        else:
            parts.append(graph.add("Where", missing, median, own) if gap else own)
        parts += [graph.add("Cast", missing, to=1)] if gap else []
    return graph.add("Concat", *parts, axis=1)


def waves_shape(kernel: np.ndarray) -> tuple[int, int, int]:
    """``[F, 1, M]``: a row for the matrix of each feature."""
    return (kernel.shape[0], 1, kernel.shape[1])


def _answers(
    graph: Graph, weights: str, loc: str, scale: str, outputs: tuple[str, ...]
) -> list[str]:
    """Nodes named as the outputs; their names."""
    found: list[str] = []
    wide = graph.add("Unsqueeze", weights, graph.constant([2], "int64"))  # [N, K, 1]
    if "parameters" in outputs:
        for name, value in (("weights", weights), ("loc", loc), ("scale", scale)):
            found.append(graph.add("Identity", value, name=name))
    mean = graph.total(graph.add("Mul", wide, loc), 1)
    if "mean" in outputs:
        found.append(graph.add("Identity", mean, name="mean"))
    if "std" in outputs:
        centre = graph.add("Unsqueeze", mean, graph.constant([1], "int64"))
        away = graph.add("Sub", loc, centre)
        squares = graph.add("Add", graph.add("Mul", scale, scale), graph.add("Mul", away, away))
        variance = graph.total(graph.add("Mul", wide, squares), 1)
        found.append(graph.add("Sqrt", variance, name="std"))
    if "log_prob" in outputs:
        y = graph.add("Unsqueeze", "y", graph.constant([1], "int64"))
        z = graph.add("Div", graph.add("Sub", y, loc), scale)
        square = graph.add("Mul", graph.add("Mul", z, z), -0.5)
        each = graph.add("Sub", square, graph.add("Log", scale))
        each = graph.total(graph.add("Sub", each, 0.5 * np.log(2 * np.pi)), 2)
        joint = graph.add("Add", graph.add("Log", weights), each)
        found.append(graph.add("ReduceLogSumExp", joint, name="log_prob", axes=[1], keepdims=0))
    return found
