"""What the pages need beyond Sphinx's own extensions: mathematics as MathML, docstrings in Markdown, anchors as Jupyter has them, and a
short list of pages."""
import re

from docutils import nodes
from fastcore.docments import docments
from latex2mathml.converter import convert


def anchor(title):
    "The anchor that Jupyter gives a heading: links between notebooks use it."
    return title.replace(" ", "-")


# Browsers render MathML themselves: no script, no fonts.
def inline_math(translator, node):
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block_math(translator, node):
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def restructured(text):
    "Markdown as docstrings use it, in reStructuredText: code spans stay code, and all else is text."
    spans = re.split(r"`([^`\n]+)`", text)
    return "".join(f"``{part}``\\ " if number % 2 else re.sub(r"([*_|\\`])", r"\\\1", part) for number, part in enumerate(spans))


def markdown_docstring(_app, what, _name, obj, _options, lines):
    "Docstrings are written in Markdown; comments beside parameters become a list below them."
    text = "\n".join(lines)
    described = docments(obj, full=False).items() if what in ("function", "method") else []
    text += "\n\n" + "\n".join(f"- `{parameter}`: {comment}" for parameter, comment in described if comment)
    lines[:] = restructured(text).splitlines() + [""]


def skip_class_methods(_app, what, _name, obj, skip, _options):
    "A chapter that gives an earlier class a class method keeps its name, by which nothing can be called: the class has it."
    return True if what == "module" and isinstance(obj, classmethod) else skip


def short_navigation(_app, _page, _template, context, _doctree):
    "The list at the side opens where the reader is. Open everywhere, on each of hundreds of pages, it takes most of the build's time."
    whole = context["toctree"]
    context["toctree"] = lambda **options: whole(**options | dict(collapse=True))


def setup(app):
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("autodoc-process-docstring", markdown_docstring)
    app.connect("autodoc-skip-member", skip_class_methods)
    app.connect("html-page-context", short_navigation, priority=400)  # before furo asks for the list
    return {"parallel_read_safe": True, "parallel_write_safe": True}
