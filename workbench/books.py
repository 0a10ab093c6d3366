"""Where the notebooks are, what parameters each declares, and whether given values fit them.

A parameters cell holds `name: type = default  # help` and nothing else. papermill passes what it
does not know or what has another type with a line in its log at most; here it is refused, before
anything is run.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple, Optional, Union

import click
import yaml
from pydantic import TypeAdapter, ValidationError

from workbench.config import explain, nearest
from workbench.errors import ConfigError, DataMissing

TYPES: dict[str, Any] = {
    **{"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict},
    **{"tuple": tuple, "Any": Any, "None": None},
}
GENERIC: dict[str, Any] = {
    **{"Optional": Optional, "Union": Union, "Literal": Literal},
    **{"list": list, "dict": dict, "tuple": tuple},
}
FOLDERS = ("out", "run")
"""parameters that name a run folder: what a notebook writes, what it looks at"""


class Refused(ConfigError, click.ClickException):
    """Parameters that a notebook does not have; papermill's command shows it without a trace."""

    exit_code = 2

    def __init__(self, message: str):
        click.ClickException.__init__(self, message)


class Parameter(NamedTuple):
    """One line of a parameters cell."""

    name: str
    annotation: str
    """the type as it stands there; empty where there is none"""
    default: str
    """as Python"""
    help: str

    def value(self) -> Any:
        """The default, or None where it is no plain value."""
        try:
            return ast.literal_eval(self.default)
        except (ValueError, SyntaxError):
            return None


def folder() -> Path:
    """Where the notebooks are: in the checkout, else where the installation put them.

    Raises:
        DataMissing: in neither place.
    """
    checkout = Path(__file__).resolve().parents[1] / "notebooks"
    if (checkout / "train.ipynb").is_file():
        return checkout
    for file in metadata.files("workbench") or ():
        if file.parts[-2:] == ("notebooks", "train.ipynb"):
            return Path(str(file.locate())).resolve().parent
    raise DataMissing(
        f"the notebooks are neither in {checkout} nor among the installed files; install the "
        "package again, or clone the repository"
    )


def find(name: str) -> Path:
    """A notebook by its name, or by the path of any `.ipynb` file.

    Raises:
        ConfigError: there is none.
    """
    if name.endswith(".ipynb"):
        if not Path(name).is_file():
            raise ConfigError(f"there is no notebook {name}; give a path that exists, or a name")
        return Path(name)
    names = [path.stem for path in sorted(folder().glob("*.ipynb"))]
    if name not in names:
        raise ConfigError(f"there is no notebook '{name}'. {nearest(name, names)}")
    return folder() / f"{name}.ipynb"


def place(path: str | Path) -> Path:
    """Where a path of a parameters cell is.

    A relative path counts from the checkout, also when JupyterLab has started the notebook inside
    the checkout's `notebooks/`: by hand and in batch it is the same folder.
    """
    return _base() / Path(path).expanduser()


def told(path: Path) -> str:
    """A path as it may stand in a parameters cell: relative where `place` finds it so."""
    base = _base()
    return str(path.relative_to(base) if path.is_relative_to(base) else path)


def _base() -> Path:
    here = Path.cwd()
    inside = here.name == "notebooks" and (here.parent / "pyproject.toml").is_file()
    return here.parent if inside else here


def declared(nb: Any) -> dict[str, Parameter] | None:
    """The parameters of a notebook in their order; None where it has no such cell."""
    from papermill.translators import PythonTranslator

    for cell in nb.cells:
        if "parameters" in cell.metadata.get("tags", []):
            return {
                p.name: Parameter(
                    p.name,
                    "" if p.inferred_type_name == "None" else p.inferred_type_name,
                    p.default,
                    p.help,
                )
                for p in PythonTranslator.inspect(cell)
            }
    return None


def kind_of(annotation: str) -> Any:
    """The type that an annotation names; anything where it is none of those that YAML can give."""
    try:
        return _kind(ast.parse(annotation, mode="eval").body) if annotation else Any
    except (SyntaxError, KeyError, TypeError):
        return Any


def _kind(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        return TYPES["None"] if node.value is None else Any
    if isinstance(node, ast.Subscript):
        name, inner = ast.unparse(node.value).rpartition(".")[2], node.slice
        parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        if name == "Literal":
            return GENERIC[name][tuple(ast.literal_eval(part) for part in parts)]
        kinds = tuple(_kind(part) for part in parts)
        return GENERIC[name][kinds if len(kinds) > 1 else kinds[0]]
    return TYPES[ast.unparse(node).rpartition(".")[2]]


def check(known: Mapping[str, Parameter], given: Mapping[str, Any]) -> None:
    """Refuse values that no parameter is there for, and values of another type.

    Args:
        known: what the notebook declares.
        given: name -> plain value.

    Raises:
        Refused: naming every fault, with a cure.
    """
    faults = []
    for name, value in given.items():
        if name not in known:
            faults.append(f"there is no parameter '{name}'. {nearest(name, list(known))}")
        elif fault := _misfit(known[name], value):
            faults.append(fault)
    if faults:
        raise Refused("\n".join(faults))


def _misfit(parameter: Parameter, value: Any) -> str:
    try:
        TypeAdapter(kind_of(parameter.annotation)).validate_python(value, strict=True)
    except ValidationError as error:
        why = explain(error, f"parameter {parameter.name}")
        if parameter.annotation.startswith(("list", "dict")) and isinstance(value, str):
            cure = f"; write it as YAML: -y '{{{parameter.name}: {value}}}'"
        elif "str" in parameter.annotation and isinstance(value, int | float):
            cure = f"; as text: -r {parameter.name} {value}"
        else:
            cure = ""
        return f"{why}; expected {parameter.annotation}{cure}"
    return ""


def check_notebook(nb: Any) -> None:
    """Refuse what papermill was told to pass and this notebook does not have.

    Args:
        nb: with its parameters injected by papermill.

    Raises:
        Refused: naming every fault.
    """
    given, known = nb.metadata.get("papermill", {}).get("parameters", {}), declared(nb)
    if given and known is not None:
        check(known, given)


def read_value(parameter: Parameter, text: str) -> Any:
    """A value from a command line, of the type that the notebook declares.

    Raises:
        Refused: the text is no such value.
    """
    kind = kind_of(parameter.annotation)
    nothing = text in ("None", "null") and "Optional" in parameter.annotation
    if kind is str or (kind == Optional[str] and not nothing):  # noqa: UP045
        return text
    value: Any = None if nothing else _number(text)
    if isinstance(value, str):
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise Refused(
                f"parameter {parameter.name}: got {text!r}, which is no YAML; expected "
                f"{parameter.annotation}, such as {parameter.default}"
            ) from None
    check({parameter.name: parameter}, {parameter.name: value})
    return value


def _number(text: str) -> int | float | str:
    """Python's reading of a number, which knows 1e-3 where YAML 1.1 does not; else the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
