"Sphinx makes pages of what gather.py has gathered. Called by build.py; nothing is run, and nothing is asked of the network."
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # for the extension beside this file, and for the library whose docstrings are read

project = "vl12in1"
copyright = "2026, The vl12in1 authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "extension"]
exclude_patterns = ["source"]

nb_execution_mode = "off"  # outputs are those of the commit
nb_render_markdown_format = "gfm"  # tables that a notebook reads from reports/
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
myst_heading_slug_func = "extension.anchor"

html_math_renderer = "mathml"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = "vl12in1"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_copy_source = False  # each page links to the notebook itself
html_show_sphinx = False
html_theme_options = {"top_of_page_buttons": []}
