"""Formulas as MathML: browsers show it by themselves, without scripts and without a network."""

import re

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

# The thin spaces that TeX sets around the name of a function, but for those before a bracket.
SPACE = '<mspace width="0.167em"/>'
NAME = re.compile(r"(<mi>(?:log|exp|sin|cos|arg|max|min|softmax|diag)</mi>)(?!<mo|</mrow>)")
BEFORE = re.compile(r"(</m(?:n|i|sub|sup|frac|under|row)>)(?=<mi>(?:log|exp|sin|cos)</mi>)")


def _write(display):
    def visit(translator, node):
        html = convert(node.astext().strip(), display=display)
        html = BEFORE.sub(rf"\1{SPACE}", NAME.sub(rf"\1{SPACE}", html))
        if display == "block":
            html = f'<div class="formula">{html}</div>'
        translator.body.append(html)
        raise SkipNode

    return visit, None


def setup(app):
    app.add_html_math_renderer("mathml", _write("inline"), _write("block"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
