"""The site: what Sphinx reads. Nothing is executed here; notebooks are shown as they are stored."""

import shutil
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

import generate_reference  # noqa: E402

import jaxmdn  # noqa: E402

# An extension uses what Sphinx 10 will not have.
warnings.filterwarnings("ignore", message="'sphinx_autodoc_typehints")

project = "jaxmdn"
author = "The jaxmdn authors"
version = release = jaxmdn.__version__
html_title = "jaxmdn"
html_math_renderer = "mathml"
html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_theme_options = {"show_navbar_depth": 1, "navbar_persistent": []}

extensions = [
    "mathml",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "explanation/accuracy_table.md"]  # the table is included

nb_execution_mode = "off"
myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_use_ivar = True

# The pages that are made from the package and the notebooks; git ignores them.
generate_reference.write(HERE / "reference")
for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
    shutil.copy(notebook, HERE / "tutorials")


def _blank_before_examples(app, what, name, obj, options, lines):
    """An example after a return type that was put in needs a blank line."""
    for i in reversed(range(1, len(lines))):
        if lines[i].startswith(">>> ") and lines[i - 1].startswith(":"):
            lines.insert(i, "")


def _skip_foreign(app, what, name, obj, skip, options):
    """Methods that another package makes are documented there."""
    return True if (getattr(obj, "__module__", None) or "").startswith("sklearn.") else None


def setup(app):
    """Register the hooks above, after those of the extensions."""
    app.connect("autodoc-skip-member", _skip_foreign)
    app.connect("autodoc-process-docstring", _blank_before_examples, priority=999)
