"""Tables for papers: LaTeX with the rules of `booktabs`."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

from workbench.plots.table import Table

SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
}
"""what LaTeX would read otherwise"""


def escape(text: str) -> str:
    """Text that LaTeX prints as it is, whatever is in it; control characters become blanks."""
    plain = "".join(" " if unicodedata.category(c)[0] == "C" else c for c in text)
    # two hyphens would become a dash
    return re.sub("-(?=-)", "-{}", "".join(SPECIAL.get(c, c) for c in plain))


def latex(columns: Table, caption: str = "", label: str = "") -> str:
    """A table float; needs `booktabs`, and for the fonts of quotes `textcomp` and T1 (the usual).

    Args:
        columns: by name; columns of numbers stand to the right.
        caption, label: of the float; text, which is escaped.

    Returns:
        the float, with `None` as an en dash.
    """
    sides = "".join("r" if _numeric(values) else "l" for values in columns.values())
    lines = [r"\begin{table}", r"\centering"]
    if caption:
        lines.append(rf"\caption{{{escape(caption)}}}")
    if label:
        lines.append(rf"\label{{{label}}}")
    lines += [rf"\begin{{tabular}}{{{sides}}}", r"\toprule", _row([escape(n) for n in columns])]
    lines.append(r"\midrule")
    lines += [_row([_cell(v) for v in values]) for values in zip(*columns.values(), strict=True)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _numeric(values: list[Any]) -> bool:
    kinds = {type(v) for v in values if v is not None}
    return bool(kinds) and kinds <= {int, float}


def _row(cells: list[str]) -> str:
    return f"{' & '.join(cells)} " + r"\\"


def _cell(value: Any) -> str:
    if value is None:
        return "--"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return escape(str(value))
    if not math.isfinite(value):
        return "--"
    told = f"{value:,}" if isinstance(value, int) else f"{value:,.7g}"
    return told.replace(",", "{,}").replace("-", "$-$")
