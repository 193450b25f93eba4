"""Settings of the documentation site; `make docs` builds it."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from localist_jax import __version__

project = "localist_jax"
author = "The localist_jax maintainers"
copyright = "The localist_jax maintainers, Apache-2.0"
release = version = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generate"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "localist_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False

# Every link inside the site must have a target. Types of other libraries are not linked.
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]

# Guides link to sections as GitHub names them, up to third-level headings.
myst_heading_anchors = 3
myst_enable_extensions = ["deflist", "dollarmath"]
suppress_warnings = ["myst.header", "ref.python"]  # two classes may share a name, such as `Dial`

# The notebook compiles much and computes little: compile fast.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

# The tour runs in every build, without anything to download; an error in it is an error of the build.
nb_execution_mode = "force"
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature has the types already
napoleon_use_rtype = False
default_role = "code"
highlight_language = "none"
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
