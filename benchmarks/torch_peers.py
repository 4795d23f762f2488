"""torch beside jaxmdn: ``torch.distributions`` eagerly, and the hand-written formula compiled.

float32, as many threads as the process has cores, autograd for the gradient. On a GPU torch must
see one too, or it does not take part.
"""

from __future__ import annotations

import abc
import importlib
import math
import os
import time
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np

from benchmarks import environment
from benchmarks.cases import Case
from benchmarks.densities import split
from benchmarks.problem import Problem
from benchmarks.timing import Runner


class TorchPeer(abc.ABC):
    """A density in torch."""

    name: ClassVar[str]
    module: ClassVar[str] = "torch"
    package: ClassVar[str] = "torch"
    parameterization: ClassVar[str]
    operations: ClassVar[tuple[str, ...]]

    def load(self) -> None:
        """Import torch and give it the cores; raises if it cannot run where JAX runs."""
        # Threads that spin at a barrier take the cores from whoever runs next, and lose hundreds of
        # milliseconds a step where anything else is running. Read once, when torch is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        torch = importlib.import_module("torch")
        torch.set_num_threads(environment.cores())
        _device(torch)

    @abc.abstractmethod
    def prepare(self, case: Case, problem: Problem) -> Runner:
        """Make a case ready to run; the result of a call is NumPy's, outside the time taken."""


class TorchEager(TorchPeer):
    """``torch.distributions.MixtureSameFamily``, eager."""

    name = "torch.distributions"
    parameterization = "scale_tril"
    operations = ("log_prob", "nll_gradient", "sample")

    def prepare(self, case: Case, problem: Problem) -> Runner:
        torch = importlib.import_module("torch")
        raw, y = _tensors(torch, problem.raw["scale_tril"], problem.y)

        def log_prob(raw: Any) -> Any:
            return _distribution(torch, case, raw).log_prob(y[:, 0] if case.dim == 1 else y)

        wait = _wait(torch)
        if case.operation == "log_prob":
            return Runner(torch.no_grad()(lambda: log_prob(raw)), wait=wait)
        if case.operation == "sample":
            return Runner(lambda: _distribution(torch, case, raw).sample((case.draws,)), wait=wait)
        return Runner(_gradient(torch, raw, lambda raw: -log_prob(raw).mean()), wait=wait)


class TorchCompiled(TorchPeer):
    """``torch.compile`` of the textbook formula, forward and backward."""

    name = "torch.compile"
    parameterization = "whitening"
    operations = ("nll_gradient",)

    def prepare(self, case: Case, problem: Problem) -> Runner:
        torch = importlib.import_module("torch")
        dynamo = importlib.import_module("torch._dynamo")
        # Otherwise an earlier run's compilation is reused, and its seconds say nothing.
        config: Any = importlib.import_module("torch._inductor.config")
        config.force_disable_caches = True
        dynamo.reset()  # shapes must not turn dynamic because an earlier case had others
        raw, y = _tensors(torch, problem.raw["whitening"], problem.y)
        rows, columns = (torch.as_tensor(i) for i in np.tril_indices(case.dim, -1))

        def loss(raw: Any) -> Any:
            logits, loc, log_scale, lower = split(case, raw)
            if case.dim == 1:  # scalars, [N, K] throughout
                log_scale = log_scale[..., 0]
                z = (y - loc[..., 0]) * torch.exp(-log_scale)
                component = -0.5 * (z**2 + math.log(2 * math.pi)) - log_scale
            else:
                deviation = y[:, None, :] - loc
                if lower is not None:
                    whitening = torch.eye(case.dim, device=raw.device).repeat(*loc.shape[:2], 1, 1)
                    whitening[:, :, rows, columns] = lower
                    deviation = torch.einsum("nkij,nkj->nki", whitening, deviation)
                z = deviation * torch.exp(-log_scale)
                component = -0.5 * (z**2 + math.log(2 * math.pi)).sum(-1) - log_scale.sum(-1)
            joint = torch.log_softmax(logits, -1) + component
            return -torch.logsumexp(joint, -1).mean()

        call, wait = _gradient(torch, raw, torch.compile(loss, dynamic=False)), _wait(torch)
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the caches
            wait(call())
        return Runner(call, time.perf_counter() - start, wait=wait)


def _device(torch: Any) -> Any:
    platform = jax.devices()[0].platform
    if platform == "cpu":
        return torch.device("cpu")
    if platform == "gpu" and torch.cuda.is_available():
        return torch.device("cuda")
    raise RuntimeError(f"JAX runs on {platform}, where torch sees no device")


def _tensors(torch: Any, *arrays: Any) -> list[Any]:
    return [torch.tensor(np.asarray(array), device=_device(torch)) for array in arrays]


def _gradient(torch: Any, raw: Any, loss: Callable[[Any], Any]) -> Callable[[], Any]:
    raw.requires_grad_()

    def call() -> Any:
        value = loss(raw)
        return value.detach(), torch.autograd.grad(value, raw)

    return call


def _wait(torch: Any) -> Callable[[Any], Any]:
    def wait(result: Any) -> Any:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return result

    return wait


def _distribution(torch: Any, case: Case, raw: Any) -> Any:
    d = torch.distributions
    logits, loc, raw_scale, lower = split(case, raw)
    scale = raw_scale.exp()
    if lower is not None:
        rows, columns = np.tril_indices(case.dim, -1)
        factor = torch.diag_embed(scale)
        factor[..., rows, columns] = lower
        components = d.MultivariateNormal(loc, scale_tril=factor)
    elif case.dim == 1:
        components = d.Normal(loc[..., 0], scale[..., 0])
    else:
        components = d.Independent(d.Normal(loc, scale), 1)
    return d.MixtureSameFamily(d.Categorical(logits=logits), components)
