"""Value and gradient of the mean NLL with respect to raw head outputs, beside distrax.

    python benchmarks/nll.py [--quick]

Both are timed in the same process, in alternation, after warming up, waiting for the result; the
median and the quartiles are shown, compile time apart. Ratios between columns carry over to other
machines better than the times do.
"""

import argparse
import time

import distrax
import jax
import jax.numpy as jnp
import numpy as np

import jaxmdn

SHAPES = [  # rows, components, dimensions, covariance
    (65536, 5, 1, "diagonal"),
    (65536, 32, 1, "diagonal"),
    (16384, 16, 16, "diagonal"),
    (4096, 64, 32, "diagonal"),
    (2048, 8, 16, "full"),
    (256, 5, 2, "diagonal"),
]


def jaxmdn_loss(head, raw, y):
    return jaxmdn.nll(head, raw, y)


def distrax_loss(head, raw, y):
    """The same density written with distrax's own classes, as its users write it."""
    mixture = head.build(raw)
    components = mixture.components
    if head.covariance == "full":
        family = distrax.MultivariateNormalTri(components.loc, components.scale_tril)
    else:
        family = distrax.MultivariateNormalDiag(components.loc, components.scale)
    density = distrax.MixtureSameFamily(distrax.Categorical(logits=mixture.logits), family)
    return -jnp.mean(density.log_prob(y))


def measure(functions, arguments, repeats):
    """Compile seconds and run seconds ``[repeats]`` of each function, run in alternation."""
    compiled, compile_seconds = [], []
    for function in functions:
        start = time.perf_counter()
        compiled.append(jax.jit(function).lower(*arguments).compile())
        compile_seconds.append(time.perf_counter() - start)
        jax.block_until_ready(compiled[-1](*arguments))
    seconds = np.zeros((len(functions), repeats))
    for i in range(repeats):
        for j, function in enumerate(compiled):
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            seconds[j, i] = time.perf_counter() - start
    return compile_seconds, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    repeats = 5 if parser.parse_args().quick else 21
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, float32; ms\n")
    print("| rows, K, D, covariance | jaxmdn | distrax | ratio | compile, s |")
    print("|---|---|---|---|---|")
    for rows, components, dim, covariance in SHAPES:
        head = jaxmdn.NormalHead(components, dim, covariance=covariance)
        raw = jax.random.normal(jax.random.key(0), (rows, head.num_outputs))
        y = jax.random.normal(jax.random.key(1), (rows, dim))
        functions = [
            jax.value_and_grad(lambda raw, y, f=f, head=head: f(head, raw, y))
            for f in (jaxmdn_loss, distrax_loss)
        ]
        values = [function(raw, y) for function in functions]
        np.testing.assert_allclose(values[0][0], values[1][0], rtol=1e-4)
        np.testing.assert_allclose(values[0][1], values[1][1], rtol=1e-4, atol=1e-4 / rows)
        compile_seconds, seconds = measure(functions, (raw, y), repeats)
        cells = []
        for row in seconds * 1e3:
            low, middle, high = np.quantile(row, [0.25, 0.5, 0.75])
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        ratio = np.median(seconds[1]) / np.median(seconds[0])
        compiled = ", ".join(f"{value:.2f}" for value in compile_seconds)
        print(
            f"| {rows}, {components}, {dim}, {covariance} | {cells[0]} | {cells[1]} "
            f"| {ratio:.1f} | {compiled} |"
        )


if __name__ == "__main__":
    main()
