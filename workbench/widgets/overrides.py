"""A small form that changes fields of a recipe, checked while one types."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ipywidgets
import yaml

from workbench.config import Config, differences, dump, nearest
from workbench.errors import ConfigError, WorkbenchError
from workbench.plots import page
from workbench.plots.style import visible
from workbench.recipe import AnyRecipe, load_recipe

LEFT_OUT = ("name", "about", "source")
"""what describes a recipe and changes no training"""


class Leaf(NamedTuple):
    """A field of a recipe that holds a value."""

    value: Any
    about: str
    """its documentation"""


def leaves(config: Config, path: str = "") -> Iterator[tuple[str, Leaf]]:
    """Every value of a config by its dotted path, such as `train.optimizer.lr`."""
    for name, field in type(config).model_fields.items():
        here, value = f"{path}{name}", getattr(config, name)
        if not path and name in LEFT_OUT:
            continue
        if isinstance(value, Config):
            yield from leaves(value, f"{here}.")
        elif isinstance(value, tuple) and value and all(isinstance(x, Config) for x in value):
            for i, each in enumerate(value):
                yield from leaves(each, f"{here}.{i}.")
        else:
            yield here, Leaf(value, " ".join((field.description or "").split()))


class OverridesForm:
    """Fields of a recipe, and other values for them.

    Args:
        recipe: name, or path of a `.yaml` file.
        overrides: values at dotted paths to begin with.

    Attributes:
        base: the recipe as it stands.
        overrides: what is changed.
        recipe: with the changes; what is accepted is always valid.

    Raises:
        ConfigError: no such recipe, or a wrong override.
    """

    def __init__(self, recipe: str | Path, overrides: Mapping[str, Any] | None = None) -> None:
        self._listeners: list[Callable[[], object]] = []
        self.path = ipywidgets.Combobox(
            placeholder="such as train.optimizer.lr",
            description="field",
            continuous_update=True,
            layout={"width": "calc(100% - 4px)"},
        )
        self.text = ipywidgets.Text(
            placeholder="new value",
            description="value",
            continuous_update=True,
            layout={"width": "calc(100% - 4px)"},
        )
        self.set = ipywidgets.Button(description="Set", tooltip="Use this value")
        self.clear = ipywidgets.Button(
            description="Reset",
            tooltip="Back to the recipe's value, all where no field is named",
        )
        self.hint, self.message, self.changes = (ipywidgets.HTML() for _ in range(3))
        self.path.observe(self._typed, "value")
        self.text.observe(self._typed, "value")
        self.text.on_msg(self._sent)
        self.set.on_click(self._accept)
        self.clear.on_click(self._reset)
        self.use(recipe, overrides)

    def use(self, recipe: str | Path, overrides: Mapping[str, Any] | None = None) -> None:
        """Begin with another recipe.

        Raises:
            ConfigError: no such recipe, or a wrong override; all stays as it was.
        """
        base, changed = load_recipe(recipe), load_recipe(recipe, overrides)
        self._name, self.base, self.recipe = recipe, base, changed
        self.overrides = dict(overrides or {})
        self._leaves = dict(leaves(base))
        self.path.options = list(self._leaves)
        self._tell()

    def on_change(self, listener: Callable[[], object]) -> None:
        """Have a function called when another recipe is in force."""
        self._listeners.append(listener)

    def widget(self) -> ipywidgets.Widget:
        """Field, value, buttons, what is wrong, and what is changed."""
        buttons = ipywidgets.HBox([self.set, self.clear])
        return ipywidgets.VBox(
            [self.path, self.text, self.hint, self.message, buttons, self.changes]
        )

    # what is typed

    def _asked(self) -> tuple[str, AnyRecipe, dict[str, Any]] | None:
        """Field, recipe and overrides with what is typed; None where nothing is.

        Raises:
            ConfigError: it is wrong.
        """
        path, text = self.path.value.strip(), self.text.value.strip()
        if not path or not text:
            return None
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"{path}: got {text!r}, expected a value as in YAML") from None
        overrides = {**self.overrides, path: value}
        return path, load_recipe(self._name, overrides), overrides

    def _typed(self, _: Any = None) -> None:
        self.hint.value = self._hint(self.path.value.strip())
        try:
            asked = self._asked()
        except WorkbenchError as error:
            self._say(str(error), bad=True)
            self.set.disabled = True
            return
        self.set.disabled = asked is None
        if asked is None:
            self.message.value = ""
            return
        before = dict(leaves(self.recipe)).get(asked[0])
        told = "" if before is None else f", {before.value!r} before"
        self._say(f"{asked[0]} may be {self.text.value.strip()}{told}", bad=False)

    def _hint(self, path: str) -> str:
        if not path:
            return ""
        leaf = self._leaves.get(path)
        if leaf is None:
            close = nearest(path, list(self._leaves))
            # a mapping as a whole is no leaf, and may be replaced
            inside = any(name.startswith(f"{path}.") for name in self._leaves)
            said = "" if inside or not close.startswith("Did") else close
        else:
            said = f"{leaf.about} The recipe says {leaf.value!r}."
        return f"<span style='color:{page.MUTED}'>{html.escape(visible(said))}</span>"

    def _sent(self, _: Any, content: Mapping[str, Any], __: Any = None) -> None:
        # the Enter key
        if content.get("event") == "submit":
            self._accept()

    def _accept(self, _: Any = None) -> None:
        try:
            asked = self._asked()
        except WorkbenchError as error:
            self._say(str(error), bad=True)
            return
        if asked is None:
            return
        _, self.recipe, self.overrides = asked
        self.text.value = ""
        self._tell()

    def _reset(self, _: Any = None) -> None:
        path = self.path.value.strip()
        left = {k: v for k, v in self.overrides.items() if path and k != path}
        try:
            self.recipe = load_recipe(self._name, left)
        except WorkbenchError as error:
            # the rest is right only together with this one
            self._say(str(error), bad=True)
            return
        self.overrides = left
        self._tell()

    # what is told

    def _say(self, text: str, bad: bool) -> None:
        lines = "<br>".join(html.escape(visible(line)) for line in text.splitlines())
        kind = "workbench-wrong' role='alert" if bad else "workbench-right"
        self.message.value = f"<div class='{kind}'>{'✗' if bad else '✓'} {lines}</div>"

    def _tell(self) -> None:
        self._typed()
        self.changes.value = changes_table(self.base, self.recipe)
        for listener in self._listeners:
            listener()


def changes_table(base: AnyRecipe, recipe: AnyRecipe) -> str:
    """In which fields a recipe differs from another, as HTML; values are text."""
    lines = differences(dump(recipe), dump(base))
    if not lines:
        return f"<span style='color:{page.MUTED}'>as the recipe says, no field changed</span>"
    rows = "".join(f"<li>{html.escape(visible(_change(line)))}</li>" for line in lines)
    return f"<ul class='workbench-changes'>{rows}</ul>"


def _change(line: str) -> str:
    """`train.steps: 200 here, 300 there` as `train.steps: 200 instead of 300`."""
    head, here, rest = line.rpartition(" here, ")
    return f"{head} instead of {rest.removesuffix(' there')}" if here else line
