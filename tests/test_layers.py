"""The shape of the house: imports run strictly downward, and every module is on the plan."""

import ast
import builtins
import graphlib
import inspect
import re
import sys
from pathlib import Path

import pytest

import jaxmdn

ROOT = Path(jaxmdn.__file__).parent
MAX_LINES = 400

# Room -> floor, as CONTRIBUTING.md has it. Floors from 9 on see the package itself.
FLOORS = {
    **dict.fromkeys(("typing", "checks", "meshes", "numerics"), 0),
    "special": 1,
    "components": 2,
    "mixture": 3,
    "heads": 4,
    "inference": 5,
    **dict.fromkeys(("losses", "scoring", "calibration"), 6),
    "nn": 7,
    "train": 8,
    **dict.fromkeys(("plots", "export", "interop", "datasets"), 9),
    **dict.fromkeys(("cli", "estimator"), 10),
    "__main__": 11,
}
# All that floors 0 to 6 may import from outside, with few exceptions. JAX itself needs SciPy.
BARE = {"jax", "numpy", *sys.stdlib_module_names}
EXTRA = {"typing": {"jaxtyping"}, "": {"lazy_loader"}, "components": {"lazy_loader"}}
EXTRA["calibration"] = {"scipy"}

PATHS = {
    ".".join(("jaxmdn", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(ROOT.rglob("*.py"))
}


def room(module):
    """``jaxmdn.heads.normal`` -> ``heads``; the package itself -> ``""``."""
    return module.partition(".")[2].partition(".")[0]


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
            if full == "jaxmdn.__version__":  # a constant of the package's own face
                continue
            external = not f"{node.module}.".startswith("jaxmdn.")
            self.names.add(full if external or full in PATHS else node.module)


def imports(source):
    visitor = Imports()
    visitor.visit(ast.parse(source))
    return visitor.names


def violations(module, names):
    """What one module imports and must not."""
    here = FLOORS.get(room(module), 0)
    for name in sorted(names):
        outside = name.partition(".")[0]
        if name.startswith(("jax._src", "jaxlib.")):
            yield f"{module}: {name} is private to JAX"
        elif outside == "jaxmdn":
            together = room(name) == room(module) and room(module)
            below = FLOORS[room(name)] < here if room(name) else here >= 9
            beside = here == 0 and room(name) and FLOORS[room(name)] == 0
            if not (together or below or beside):
                yield f"{module}: {name} is not below"
        elif here <= 6 and outside not in BARE | EXTRA.get(room(module), set()):
            yield f"{module}: {name} is neither JAX, NumPy nor the standard library"


GRAPH = {module: imports(path.read_text()) for module, path in PATHS.items()}


def test_the_plan_names_every_room_and_no_other():
    assert {room(module) for module in PATHS} - {""} == set(FLOORS)


def test_imports_run_downward():
    assert not [bad for module in PATHS for bad in violations(module, GRAPH[module])]
    inside = {module: names & set(PATHS) for module, names in GRAPH.items()}
    assert set(graphlib.TopologicalSorter(inside).static_order()) == set(PATHS)  # no circle


def test_modules_are_short():
    lines = {module: len(path.read_text().splitlines()) for module, path in PATHS.items()}
    assert not {module: count for module, count in lines.items() if count > MAX_LINES}


def test_no_dataclass_shares_the_structure_of_another():
    """JAX's own registration may run one class's compiled program for another (``declare``)."""
    sources = {module: path.read_text() for module, path in PATHS.items()}
    assert not [module for module, text in sources.items() if "@jax.tree_util.register_d" in text]


def test_what_is_used_is_defined():
    """The linter cannot say so: it takes the shapes in annotations for names."""
    for module, path in PATHS.items():
        known, used = {*dir(builtins), "__file__", "__name__"}, set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Name):
                (used if isinstance(node.ctx, ast.Load) else known).add(node.id)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                known |= {(a.asname or a.name).partition(".")[0] for a in node.names}
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                known.add(node.name)
            elif isinstance(node, ast.arg):
                known.add(node.arg)
            elif isinstance(node, ast.ExceptHandler):
                known.add(node.name)
        assert used <= known, (module, used - known)


def test_programs_run_on_any_mesh():
    """Through ``meshes``, which knows where arrays lie; training gathers its rows first."""
    refused = re.compile(r"jax\.lax\.(scan|fori_loop|while_loop)\(|^@(partial\()?jax\.jit", re.M)
    checked = {module for module in PATHS if FLOORS.get(room(module), 9) <= 7} - {"jaxmdn.meshes"}
    assert not [module for module in checked if refused.search(PATHS[module].read_text())]


def test_the_rules_catch_what_they_forbid_and_nothing_else():
    for module, line in (
        ("jaxmdn.losses", "from jaxmdn import scoring"),  # the same floor
        ("jaxmdn.heads.normal", "from jaxmdn.losses import nll"),  # upward
        ("jaxmdn.heads.normal", "def f():\n    from jaxmdn import nn"),  # hidden in a function
        ("jaxmdn.mixture.mixture", "import jaxmdn"),  # the package itself
        ("jaxmdn.numerics", "import scipy.special"),
        ("jaxmdn.losses", "import distrax"),
        ("jaxmdn.nn", "from jax._src import core"),
        ("jaxmdn.nn", "from jax import _src"),
    ):
        assert list(violations(module, imports(line))), (module, line)
    allowed = "from jaxmdn import checks\nfrom jaxmdn.heads.base import Head\nimport jax, numpy"
    assert not list(violations("jaxmdn.heads.normal", imports(allowed)))
    assert not list(violations("jaxmdn.mixture", imports("if TYPE_CHECKING:\n    import flax")))


def test_the_public_names_exist_and_are_documented():
    for package in (jaxmdn, jaxmdn.components, jaxmdn.train):
        for name in package.__all__:
            value = getattr(package, name)
            doc = value.__doc__ or ""
            assert doc.strip(), f"{package.__name__}.{name} has no docstring"
            generated = doc.startswith(f"{name}(") and inspect.isclass(value)
            assert not generated, f"{name} has only the docstring that dataclass makes"


def test_an_unknown_name_raises():
    with pytest.raises(AttributeError, match="nonsense"):
        jaxmdn.nonsense
