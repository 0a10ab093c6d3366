"""Checkers of the house rules: each takes one source text and returns its faults, a line each.

`test_house.py` runs them over the house, and over small bad examples, so that each can fail.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator

FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 12

# who may import whom, part by part; `top` is the rest: what people start, nothing imports it back
LEAVES = {"config", "errors"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "carry": {"errors"},
    "metrics": {"errors"},
    "kernels": LEAVES,
    "data": LEAVES,
    "inspect": LEAVES | {"carry", "kernels"},
    "models": LEAVES | {"carry", "inspect", "kernels"},
    "settings": LEAVES,
    "originals": LEAVES | {"data", "models", "settings"},
    "recipe": LEAVES | {"data", "models", "settings"},
    "train": LEAVES
    | {"carry", "metrics", "kernels", "data", "inspect", "models", "settings", "recipe"},
}
# what a recipe says about training, apart from the training itself
SETTINGS = {
    "workbench.train.averaging",
    "workbench.train.config",
    "workbench.train.optim",
    "workbench.train.schedule",
}
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the dotted text of what is called."""
    return ((ast.unparse(n.func), n) for n in ast.walk(tree) if isinstance(n, ast.Call))


def too_long(source: str) -> list[str]:
    """Files of more than 400 lines, functions of more than 60, signatures of more than 12."""
    faults = []
    if (lines := len(source.splitlines())) > FILE_LINES:
        faults.append(f"1: {lines} lines in the file, at most {FILE_LINES}")
    for node in functions(ast.parse(source)):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        a = node.args
        width = len([*a.posonlyargs, *a.args, *a.kwonlyargs]) + bool(a.vararg) + bool(a.kwarg)
        if lines > FUNCTION_LINES:
            faults.append(f"{node.lineno}: {node.name} has {lines} lines, at most {FUNCTION_LINES}")
        if width > PARAMETERS:
            faults.append(f"{node.lineno}: {node.name} takes {width}, at most {PARAMETERS}")
    return faults


def prints(source: str) -> list[str]:
    """`print`: the package speaks through the logger `workbench`."""
    found = (n for name, n in calls(ast.parse(source)) if name == "print")
    return [f"{n.lineno}: print; use the logger" for n in found]


def guesses(source: str) -> list[str]:
    """`hasattr`: whoever asks what a thing is has lost sight of it."""
    found = (n for name, n in calls(ast.parse(source)) if name == "hasattr")
    return [f"{n.lineno}: hasattr; use a type or a protocol" for n in found]


def swallowed(source: str) -> list[str]:
    """Bare handlers; blind ones that neither raise again nor say in a comment why not."""
    lines, faults = source.splitlines(), []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        names = {ast.unparse(k) for k in kinds if k}
        again = any(isinstance(n, ast.Raise) for b in node.body for n in ast.walk(b))
        said = "#" in "\n".join(lines[node.lineno - 1 : node.body[0].lineno])
        if node.type is None and not again:
            faults.append(f"{node.lineno}: bare except")
        elif names & {"Exception", "BaseException"} and not (again or said):
            faults.append(f"{node.lineno}: blind except without a reason")
    return faults


def open_configs(source: str) -> list[str]:
    """`**kwargs` in the methods of a config: each option has a name, and a misspelt one fails."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef):
            continue
        bases = [ast.unparse(base).split(".")[-1] for base in node.bases]
        if not any(base.endswith(("Config", "Choice", "Recipe", "BaseModel")) for base in bases):
            continue
        for method in functions(node):
            # pydantic passes class keywords to this hook
            if method.args.kwarg and method.name != "__pydantic_init_subclass__":
                faults.append(f"{method.lineno}: {node.name}.{method.name} takes **kwargs")
    return faults


def unpickles(source: str) -> list[str]:
    """Whatever can run code from a file: pickle and its kin, `torch.load` of more than weights."""
    tree, faults = ast.parse(source), []
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        if {name.split(".")[0] for name in names} & UNPICKLERS:
            faults.append(f"{node.lineno}: imports {', '.join(names)}")
    for name, call in calls(tree):
        said = {k.arg: ast.unparse(k.value) for k in call.keywords}
        if name.endswith("torch.load") and said.get("weights_only") != "True":
            faults.append(f"{call.lineno}: torch.load without weights_only=True")
        if said.get("allow_pickle", "False") != "False":
            faults.append(f"{call.lineno}: allow_pickle")
    return faults


def part(module: str) -> str:
    """The part of the house that a module belongs to."""
    name = module.split(".")[1] if "." in module else ""
    return "settings" if module in SETTINGS else name if name in MAY_IMPORT else "top"


def imported(source: str, module: str, package: bool, known: set[str]) -> Iterator[tuple[int, str]]:
    """Line and full name of each workbench module that a source imports, `known` being all."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = module.split(".")[: len(module.split(".")) - node.level + package]
                base = ".".join([*up, *([base] if base else [])])
            inner = {f"{base}.{alias.name}" for alias in node.names} & known
            names = sorted(inner) or [base]
        else:
            continue
        yield from ((node.lineno, n) for n in names if n.split(".")[0] == "workbench")


def wrong_way(source: str, module: str, package: bool, known: set[str]) -> list[str]:
    """Imports against the one direction: train -> models -> kernels; leaves import no one."""
    here = part(module)
    if here == "top":
        return []
    return [
        f"{line}: {module} ({here}) imports {name} ({part(name)})"
        for line, name in imported(source, module, package, known)
        if part(name) not in MAY_IMPORT[here] | {here}
    ]


def carries_outputs(text: str) -> list[str]:
    """Code cells of a notebook that hold outputs or a count."""
    cells = json.loads(text)["cells"]
    return [
        f"cell {i}: carries outputs; run `make fix`"
        for i, c in enumerate(cells)
        if c["cell_type"] == "code" and (c["outputs"] or c["execution_count"])
    ]
