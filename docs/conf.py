"""Settings of the documentation; ``make docs`` builds it into ``docs/_build/html``."""

from __future__ import annotations

import sys
from pathlib import Path

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tools"))

import site_pages  # noqa: E402
from ssl_lightning import __version__  # noqa: E402

project = "ssl_lightning"
author = "the ssl_lightning developers"
copyright = author  # noqa: A001 - the name that Sphinx reads
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "generated/files"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nitpicky = False

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
add_module_names = False
toc_object_entries = False

html_theme = "furo"
html_math_renderer = "mathml"  # browsers show it without a script from elsewhere
html_title = f"ssl_lightning {__version__}"
html_extra_path = ["generated/files"]  # zoo.html, one file that needs nothing else
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"source_directory": "docs/", "top_of_page_buttons": []}
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
copybutton_line_continuation_character = "\\"


def write_math(as_block):
    """Return what writes a formula of TeX as MathML."""

    def visit(writer, node):
        writer.body.append(tex2mathml(node.astext(), as_block=as_block))
        raise SkipNode

    return visit


def setup(app):
    """Write the generated pages before the others are read."""
    site_pages.write_all(HERE)
    app.add_html_math_renderer("mathml", (write_math(False), None), (write_math(True), None))
