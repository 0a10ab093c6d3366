"""Importing this sends plotly's program to the page, if there is one.

Imported before PyTorch, which takes seconds: the page takes the program in meanwhile, and listens
to the widgets that follow as `library.js` says.
"""

from __future__ import annotations

from workbench.attendance import attended
from workbench.widgets.library import library

if attended():
    library()
