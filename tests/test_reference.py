"""The reference of the site: every public name is on a page of its group, and no other."""

import ast
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import jaxmdn

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "generate_reference.py")
reference = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reference)
STUB = (ROOT / "jaxmdn" / "__init__.pyi").read_text()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """What the site's configuration writes: name of the page -> the names that it documents."""
    folder = tmp_path_factory.mktemp("reference")
    reference.write(folder)
    return {
        path.stem: re.findall(r"^\.\. (?:auto\w+|py:data):: (\S+)", path.read_text(), re.MULTILINE)
        for path in folder.glob("*.md")
    }


def test_every_public_name_stands_once_on_a_page_of_its_group(pages):
    """The stub, read as text, says what is public."""
    documented = {name for names in pages.values() for name in names}
    packages = {"train_checkpoint"}  # as ``jaxmdn.checkpoint``, too
    for node in ast.walk(ast.parse(STUB)):
        for alias in getattr(node, "names", ()):
            if node.module is None:
                packages.add(alias.name)
            elif not alias.name.startswith("_") and alias.name != "checkpoint":
                assert f"jaxmdn.{alias.name}" in documented, alias.name
    assert packages <= pages.keys()
    for package in packages - {"train_checkpoint"}:
        for name in reference.exported(getattr(jaxmdn, package)):
            whole = {f"jaxmdn.{package}.{name}", f"jaxmdn.{name}"}
            assert documented & whole or f"{package}_{name}" in pages, f"{package}.{name}"
    assert len(documented) == sum(len(names) for names in pages.values()) > 150


def test_no_private_name_is_documented(pages):
    for names in pages.values():
        for name in names:
            assert not any(part.startswith("_") for part in name.split(".")), name


def test_formulas_and_code_of_docstrings_stand_as_they_are_written():
    """An indented block is one after ``::``; else it is set as text, quotes and all."""
    loose = re.compile(r"^( *)\S.*(?<!::)\n\n\1 {4,}\S", re.MULTILINE)
    for module in reference.groups().values():
        for name in reference.public_names(module):
            members = vars(name.value).values() if inspect.isclass(name.value) else ()
            for part in filter(callable, (name.value, *members)):
                ours = str(getattr(part, "__module__", "")).startswith("jaxmdn")
                found = loose.search(inspect.getdoc(part) or "") if ours else None
                assert not found, f"{name.path}: {found[0]!r}"


def test_every_entry_of_the_tables_says_what_a_name_is():
    for module in reference.groups().values():
        for name in reference.public_names(module):
            if callable(name.value):
                assert len(reference.summary(name.value)) > 12, name.path
