"""The shape of the house: imports run strictly downward, and every module is on the plan."""

import ast
import graphlib
import inspect
import sys
from pathlib import Path

import pytest

import jaxmdn

ROOT = Path(jaxmdn.__file__).parent
MAX_LINES = 400

# Top-level module or package -> floor (DESIGN.md, "Layers"). A new module needs a line here.
FLOORS = {
    "_version": 0,
    "typing": 0,
    "checks": 0,
    "graph": 0,
    "numerics": 0,
    "links": 0,
    "components": 0,
    "mixture": 1,
    "pooling": 1,
    "reductions": 1,
    "sampling": 1,
    "sequential": 1,
    "structure": 1,
    "heads": 2,
    "inference": 2,
    "kernels": 2.5,
    "losses": 3,
    "scoring": 3,
    "calibration": 3,
    "initializers": 3,
    "interop": 3,
    "datasets": 3,
    "nn": 4,
    "train": 4,
    "plots": 5,
    "checkpoint": 5,
    "parallel": 5,
    "ensemble": 5,
    "bench": 5.5,
    "cli": 6,
    "estimator": 6,
    "__main__": 7,
}
PACKAGE_FLOOR = 3.5  # jaxmdn/__init__.py: sees floors 0 to 3, is seen by floor 4 and above
SIDEWAYS_FLOORS = (0, 1)  # neighbours may import each other, as long as no circle comes of it
# All that floors 0 to 3 may import from outside, with two exceptions.
BARE = {"jax", "jaxlib", "numpy", *sys.stdlib_module_names}
EXTRA = {"interop": {"distrax"}, "typing": {"jaxtyping"}}

PATHS = {
    ".".join(("jaxmdn", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(ROOT.rglob("*.py"))
}


def top_level(name):
    return name.partition(".")[0]


def top(module):
    """``jaxmdn.heads.normal`` -> ``heads``; the package itself -> ``""``."""
    return module.partition(".")[2].partition(".")[0]


def floor(module):
    return FLOORS[top(module)] if top(module) else PACKAGE_FLOOR


class Imports(ast.NodeVisitor):
    """Collect imported modules, inside functions too; only type checkers see the rest."""

    def __init__(self):
        self.names = set()

    def visit_If(self, node):
        hidden = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for child in node.orelse if hidden else ast.iter_child_nodes(node):
            self.visit(child)

    def visit_Import(self, node):
        self.names.update(alias.name for alias in node.names)

    def visit_ImportFrom(self, node):
        assert node.level == 0, f"line {node.lineno}: write imports in full, from jaxmdn..."
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            external = not f"{node.module}.".startswith("jaxmdn.")
            self.names.add(full if external or full in PATHS else node.module)


def imports(source):
    visitor = Imports()
    visitor.visit(ast.parse(source))
    return visitor.names


def violations(module, names):
    """What one module imports and must not."""
    bad = []
    for name in sorted(names):
        if name.startswith("jax._src") or name.startswith("jaxlib."):
            bad.append(f"{name} is private to JAX")
        elif top_level(name) == "jaxmdn":
            together = top(name) == top(module) and top(module)
            aside = floor(name) == floor(module) in SIDEWAYS_FLOORS
            if not (together or aside or floor(name) < floor(module)):
                bad.append(f"{name} is not below")
        elif floor(module) < 4 and top_level(name) not in BARE | EXTRA.get(top(module), set()):
            bad.append(f"{name} is neither JAX, NumPy nor the standard library")
    return bad


GRAPH = {module: imports(path.read_text()) for module, path in PATHS.items()}


def test_every_module_is_on_the_plan():
    unknown = {top(module) for module in PATHS} - set(FLOORS) - {""}
    assert not unknown, f"give {sorted(unknown)} a floor in FLOORS and in DESIGN.md"
    assert len(PATHS) > 20  # the walk found the package


@pytest.mark.parametrize("module", PATHS)
def test_imports_run_downward(module):
    assert not violations(module, GRAPH[module])


def test_no_import_cycles():
    inside = {module: names & set(PATHS) for module, names in GRAPH.items()}
    order = tuple(graphlib.TopologicalSorter(inside).static_order())
    assert set(order) == set(PATHS)


@pytest.mark.parametrize("module", PATHS)
def test_modules_are_short(module):
    assert len(PATHS[module].read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("jaxmdn.losses", "from jaxmdn import scoring"),  # the same floor
        ("jaxmdn.heads.normal", "from jaxmdn.losses import nll"),  # upward
        ("jaxmdn.heads.normal", "def f():\n    from jaxmdn import nn"),  # hidden in a function
        ("jaxmdn.mixture", "import jaxmdn"),  # the package itself
        ("jaxmdn.numerics", "import scipy.special"),
        ("jaxmdn.losses", "import distrax"),
        ("jaxmdn", "from jaxmdn import nn"),
        ("jaxmdn.nn", "from jax._src import core"),
        ("jaxmdn.nn", "from jax import _src"),
    ],
)
def test_the_rules_catch_what_they_forbid(module, line):
    assert violations(module, imports(line))


def test_the_rules_allow_what_they_should():
    allowed = (
        "from jaxmdn import checks\nfrom jaxmdn.heads.base import Head\nimport jax, numpy, math"
    )
    assert not violations("jaxmdn.heads.normal", imports(allowed))
    hidden = "if TYPE_CHECKING:\n    from jaxmdn import nn"
    assert not violations("jaxmdn", imports(hidden))


def test_the_public_names_exist_and_are_documented():
    assert list(jaxmdn.__all__) == sorted(set(jaxmdn.__all__))
    assert set(jaxmdn.__all__) <= set(dir(jaxmdn))
    for name in set(jaxmdn.__all__) - {"__version__"}:
        value = getattr(jaxmdn, name)
        doc = value.__doc__ or ""
        assert doc.strip(), f"jaxmdn.{name} has no docstring"
        generated = doc.startswith(f"{name}(") and inspect.isclass(value)
        assert not generated, f"jaxmdn.{name} has only the docstring that dataclass makes"


def test_an_unknown_name_raises():
    with pytest.raises(AttributeError, match="module 'jaxmdn' has no attribute 'nonsense'"):
        jaxmdn.nonsense
