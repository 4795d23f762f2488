"""Directed acyclic graphs between outputs: who may depend on whom.

A graph over D outputs is a tuple of D tuples, each output's parents: ``((), (0,), (0, 1))`` says
that output 1 depends on output 0, and output 2 on both. It states conditional independence,
``p(y | x) = prod_d p(y_d | x, y_parents(d))``, and is plain Python: static, hashable, JSON-ready.
"""

from __future__ import annotations

import graphlib
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np

from jaxmdn import checks

Graph = tuple[tuple[int, ...], ...]


def chain(num_outputs: int) -> Graph:
    """Every output depends on all before it: the chain rule, which assumes nothing.

    >>> chain(3)
    ((), (0,), (0, 1))
    """
    checks.require_count("graph.chain", "num_outputs", num_outputs)
    return tuple(tuple(range(d)) for d in range(num_outputs))


def independent(num_outputs: int) -> Graph:
    """No output depends on another, given the inputs.

    >>> independent(3)
    ((), (), ())
    """
    checks.require_count("graph.independent", "num_outputs", num_outputs)
    return ((),) * num_outputs


def validate(
    graph: Sequence[Sequence[SupportsIndex]],
    *,
    num_outputs: int | None = None,
    function: str = "graph.validate",
) -> Graph:
    """Check a graph and return it as tuples, each output's parents in increasing order.

    Args:
      graph: each output's parents.
      num_outputs: how many outputs there must be; any number if absent.
      function: the caller's name, for messages.

    Raises:
      ValueError: naming the outputs that are unknown, listed twice, their own parents, or on a
        cycle. TypeError: if it is no sequence of sequences of integers.

    >>> validate([[], [0], [1, 0]])
    ((), (0,), (0, 1))
    """
    if not _is_sequence(graph) or not all(_is_sequence(parents) for parents in graph):
        raise TypeError(
            f"{function}: graph must list each output's parents, such as ((), (0,), (0, 1)), "
            f"got {graph!r}."
        )
    count = len(graph)
    if count == 0 or (num_outputs is not None and count != num_outputs):
        wanted = "at least one output" if num_outputs is None else f"{num_outputs} outputs"
        raise ValueError(
            f"{function}: graph must list the parents of {wanted}, got {count}: {graph!r}; an "
            f"output without parents has the entry ()."
        )
    result = tuple(_parents(function, child, parents, count) for child, parents in enumerate(graph))
    try:
        graphlib.TopologicalSorter(dict(enumerate(result))).prepare()
    except graphlib.CycleError as error:
        circle = " -> ".join(map(str, error.args[1]))
        raise ValueError(
            f"{function}: graph must have no cycle, got {circle} (an arrow leads from parent to "
            f"child); leave out one of its edges."
        ) from None
    return result


def topological_order(graph: Graph) -> tuple[int, ...]:
    """The outputs, parents before children; as they are numbered wherever there is a choice.

    >>> topological_order(((2,), (), (1,)))
    (1, 2, 0)
    """
    left, order = list(range(len(graph))), []
    while left:
        following = next(node for node in left if not set(graph[node]) & set(left))
        left.remove(following)
        order.append(following)
    return tuple(order)


def generations(graph: Graph) -> Graph:
    """The outputs by the length of the longest path that leads to them.

    All parents of a generation lie in earlier ones, so that it can be drawn at once.

    >>> generations(((), (0,), (0,), (1, 2)))
    ((0,), (1, 2), (3,))
    """
    depth: dict[int, int] = {}
    for node in topological_order(graph):
        depth[node] = 1 + max((depth[parent] for parent in graph[node]), default=-1)
    deepest = max(depth.values())
    return tuple(
        tuple(node for node in range(len(graph)) if depth[node] == level)
        for level in range(deepest + 1)
    )


def children(graph: Graph) -> Graph:
    """Each output's children.

    >>> children(((), (0,), (0, 1)))
    ((1, 2), (2,), ())
    """
    return tuple(
        tuple(child for child, parents in enumerate(graph) if node in parents)
        for node in range(len(graph))
    )


def descendants(graph: Graph) -> Graph:
    """Each output's children, their children, and so on.

    >>> descendants(((), (0,), (1,)))
    ((1, 2), (2,), ())
    """
    below = children(graph)
    reached: dict[int, set[int]] = {}
    for node in reversed(topological_order(graph)):
        reached[node] = set(below[node]).union(*(reached[child] for child in below[node]))
    return tuple(tuple(sorted(reached[node])) for node in range(len(graph)))


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _parents(function: str, child: int, parents: Sequence[Any], count: int) -> tuple[int, ...]:
    for parent in parents:
        if isinstance(parent, bool) or not isinstance(parent, (int, np.integer)):
            raise TypeError(
                f"{function}: graph must name parents by their number, but output {child} has the "
                f"parent {parent!r}."
            )
        if not 0 <= parent < count:
            raise ValueError(
                f"{function}: output {child} has the parent {parent}, which does not exist; the "
                f"outputs are numbered from 0 to {count - 1}."
            )
        if parent == child:
            raise ValueError(
                f"{function}: output {child} is its own parent; leave it out of its parents."
            )
        if list(parents).count(parent) > 1:
            raise ValueError(
                f"{function}: output {child} has the parent {parent} more than once; list it once."
            )
    return tuple(sorted(int(parent) for parent in parents))
