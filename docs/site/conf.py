"""Configuration of the site: `make docs` builds it in English and in Chinese, to be opened from the disk."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "pyllama"
author = "the pyllama authors"
copyright = author
extensions = ["myst_parser", "extension", "manual", "computed", "lessons", "quotes", "kernel_tables", "model_tables",
              "facing", "graph", "notebook_pages"]
source_suffix = {".md": "markdown"}
locale_dirs = ["locale"]
gettext_compact = True                                          # one catalogue for all ops, one for the others

html_theme = "furo"
html_title = "pyllama"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
templates_path = ["_templates"]
html_sidebars = {"**": ["sidebar/brand.html", "switch.html", "sidebar/search.html", "sidebar/scroll-start.html",
                        "sidebar/navigation.html", "sidebar/scroll-end.html"]}
html_copy_source = False
html_use_index = False
html_show_search_summary = False                                # a page from the disk may not read others
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3                                        # the guides link to their headings
myst_url_schemes = ["http", "https", "mailto", "repo"]          # repo: see sources.py
html_show_sphinx = False
html_context = {"languages": {"en": "English", "zh_CN": "中文"}}
