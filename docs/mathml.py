"""Formulas as MathML: browsers show it by themselves, without scripts and without a network."""

from docutils.nodes import SkipNode
from latex2mathml.converter import convert


def _write(display):
    def visit(translator, node):
        html = convert(node.astext().strip(), display=display)
        if display == "block":
            html = f'<div class="formula">{html}</div>'
        translator.body.append(html)
        raise SkipNode

    return visit, None


def setup(app):
    app.add_html_math_renderer("mathml", _write("inline"), _write("block"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
