"""Training from the page: choose a recipe, change fields, start, pause, stop, continue, watch.

In a browser the training is a process of its own (`workbench.background`), which the page only
watches: closing the tab or restarting the Jupyter kernel leaves it alone, and the notebook opened
again finds it. In batch it is a loop in the notebook, with the same records, samples and pictures.
"""

from __future__ import annotations

import html
import logging
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets
import plotly.graph_objects as go
from IPython.display import display

from workbench import background, catalogue, notebook
from workbench.attendance import attended
from workbench.books import place, told
from workbench.company import Company
from workbench.errors import WorkbenchError
from workbench.following import GOING, RunWatch, runs_near
from workbench.plots import page
from workbench.plots.live import LiveTraining
from workbench.plots.samples import passages
from workbench.plots.style import visible
from workbench.recipe import AnyRecipe, Recipe
from workbench.samples import SampleSettings
from workbench.train.control import ask
from workbench.train.folder import RunFolder
from workbench.train.start import start
from workbench.widgets.overrides import OverridesForm
from workbench.widgets.panel import Panel
from workbench.widgets.recipes import RecipePicker
from workbench.widgets.run_view import WHOLE, RunView, choices, picture, unit_of

log = logging.getLogger("workbench")

POLL_S = 1.0
"""seconds between two looks at the run folder"""
NEW = ""
"""stands for a run that is not begun yet, in the list of runs"""
STYLE = f"""<style>
.workbench-mono select, .workbench-head {{ font-family: {page.MONO}; font-size: 12px; }}
.workbench-head {{ white-space: pre; overflow: hidden; margin: 0; padding: 0 0 0 6px;
  color: {page.MUTED}; }}
.workbench-about dl {{ display: grid; grid-template-columns: max-content 1fr; gap: 0 1em;
  margin: .3em 0; line-height: 1.5; }}
.workbench-about dd {{ margin: 0; }}
.workbench-about, .workbench-changes {{ color: {page.INK}; line-height: 1.5; white-space: normal; }}
.workbench-changes {{ margin: 0; padding-left: 1.2em; font-family: {page.MONO}; font-size: 12px; }}
.workbench-wrong, .workbench-right {{ line-height: 1.4; white-space: normal; color: {page.INK};
  border-left: 3px solid #0AA266; padding-left: .5em; overflow-wrap: anywhere; }}
.workbench-wrong {{ border-left-color: #E35A06; }}
.workbench-train .widget-html-content, .workbench-train .jupyter-widget-html-content {{
  white-space: normal; line-height: 1.5; }}
</style>"""

_shown: list[Training] = []
"""the view of this Jupyter kernel that looks at its run; a cell run again makes another"""


class Training(Panel):
    """The view of the notebook `train`.

    Args:
        recipe: a name, or the path of a `.yaml` file.
        overrides: values at dotted paths.
        out: the run folder; one that is there is shown, and continued.
        train: fields of `train` with a parameter of their own, such as `steps`; None: the recipe's.
        processes: how many share each batch.
        track: trackers, by name.
        samples: of text, drawn meanwhile.

    Raises:
        ConfigError: no such recipe, or a wrong value.
    """

    def __init__(
        self,
        recipe: str,
        overrides: Mapping[str, Any] | None = None,
        *,
        out: str | Path,
        train: Mapping[str, float | int | None] | None = None,
        processes: int = 1,
        track: Sequence[str] = (),
        samples: SampleSettings | None = None,
    ) -> None:
        self.chosen = notebook.choose_recipe(recipe, overrides, **(train or {}))
        self.samples = samples or SampleSettings()
        self.samples.check()
        self._name = str(notebook.place(recipe)) if recipe.endswith((".yaml", ".yml")) else recipe
        own = {f"train.{k}": v for k, v in (train or {}).items() if v is not None}
        self._overrides = {**(overrides or {}), **own}
        self._processes, self._track = processes, list(track)
        self.watch = RunWatch(notebook.place(out))
        self.watch.poll()

    @property
    def folder(self) -> RunFolder:
        """Of the run that is shown."""
        return self.watch.folder

    def show(self, folder: RunFolder | None = None) -> None:
        """Put the view on the page; where nobody can press its buttons, train to the end instead.

        Raises:
            WorkbenchError: unattended, whatever ends the training; the folder can be continued.
        """
        if attended():
            display(self.live())
            self._follow()
        else:
            self.train()

    def train(self) -> None:
        """Train in this process until the run ends, with live curves.

        Raises:
            WorkbenchError: see `workbench.start`; the curves so far stay on the page.
        """
        run = start(
            self.chosen, out=self.folder.path, processes=self._processes, trackers=self._track
        )
        company = Company(run, self.samples)
        # widgets would put megabytes of their code into a notebook that plain papermill saves
        with LiveTraining(run, batch=True, limit=company.limit) as view:
            for record in run:
                view.update(record)
                company.see(record)
        self.watch.poll()

    def introduction(self) -> str:
        """What is about to be trained, in a few lines."""
        recipe = self.chosen
        lines = [f"{recipe.name}: {recipe.about}"]
        if self._overrides:
            lines.append(f"but with other values of {', '.join(self._overrides)}")
        size = catalogue.count_parameters(recipe)
        known = (
            "as many parameters as its text asks for" if size is None else f"{size:,} parameters"
        )
        lines.append(f"{known}; {recipe.train.steps:,} updates, in {told(self.folder.path)}")
        return "\n".join(lines)

    def summary(self) -> str:
        """How the run stands, and what to do next."""
        self.watch.poll()
        watch = self.watch
        if not watch.folder.exists():
            return f"No run in {told(watch.folder.path)} yet: press Start above"
        state = f"{watch.state} at step {watch.step:,} of {watch.steps:,}. {watch.message}".strip()
        return f"{state}\nNext: evaluate.ipynb with run = {told(watch.folder.path)!r}"

    def stills(self) -> dict[str, go.Figure]:
        """The curves."""
        return {"training": picture(self.watch)} if self.watch.records else {}

    def keep(self) -> None:
        """Keep curves and samples in the run folder's `figures/`, and show them unattended."""
        self.watch.poll()
        if not self.watch.folder.exists():
            return
        folder = RunFolder(self.folder.path)
        keep_figure = notebook.keep_figure if attended() else notebook.save_figure
        for name, fig in self.stills().items():
            keep_figure(folder, name, fig)
        if self.watch.samples:
            texts = passages(self.watch.samples, unit_of(folder))
            keep = notebook.keep_text if attended() else notebook.save_text
            keep(folder, "training_samples", texts)

    # in a browser

    def live(self) -> ipywidgets.Widget:
        """Recipes, overrides, buttons and the run."""
        self._lock = threading.RLock()
        self._recipe = self.chosen.name
        self._find()
        self.picker = RecipePicker([catalogue.entry(self.chosen)], self.chosen.name)
        self.form = OverridesForm(self._name, self._overrides)
        self.view = RunView(self.watch, self.chosen)
        self.runs = ipywidgets.Dropdown(description="run", layout={"width": WHOLE})
        self.runs.observe(self._run_chosen, "value")
        self.out = ipywidgets.Text(
            value=told(self.folder.path), description="folder", layout={"width": WHOLE}
        )
        self.buttons = {
            name: ipywidgets.Button(description=name, tooltip=tip, layout={"width": "auto"})
            for name, tip in TIPS.items()
        }
        self.said = ipywidgets.HTML()
        self._offer_runs()
        self.picker.on_choice(self._recipe_chosen)
        for name, button in self.buttons.items():
            button.on_click(lambda _, name=name: self._press(name))
        self._enable()
        return self._arranged()

    def _arranged(self) -> ipywidgets.Widget:
        asked = ipywidgets.VBox([self.picker.widget(), self.form.widget()])
        self.fold = ipywidgets.Accordion(
            children=[asked], titles=["Recipe and its fields, for a new run"]
        )
        self.fold.selected_index = 0 if self.watch.state == "new" else None
        row = ipywidgets.HBox(list(self.buttons.values()))
        parts = [ipywidgets.HTML(STYLE), self.runs, self.fold, self.out, row, self.said]
        whole = ipywidgets.VBox([*parts, self.view.widget()], layout={"max_width": "960px"})
        whole.add_class("workbench-train")
        return whole

    def _find(self) -> None:
        """Turn to a run that is in training beside ours, where ours is not: after the Jupyter
        kernel was started again, the notebook's parameters do not tell what was begun by hand."""
        near = (p for p in runs_near(self.folder.path) if _state(p) in GOING)
        if self.watch.state not in GOING and (path := next(near, None)) is not None:
            self.watch = RunWatch(path)
            self.watch.poll()

    def _offer_runs(self) -> None:
        """All runs beside this one, and a new one."""
        mine = str(self.folder.path)
        found = choices(runs_near(self.folder.path))
        if mine not in [path for _, path in found] and self.watch.state != "new":
            found.insert(0, (f"{self.folder.path.name}: {self.watch.state}", mine))
        # new options choose the first of them, which nobody has asked for
        self.runs.unobserve(self._run_chosen, "value")
        self.runs.options = [*found, ("a new run", NEW)]
        self.runs.value = NEW if self.watch.state == "new" else mine
        self.runs.observe(self._run_chosen, "value")

    def _recipe_chosen(self, entry: catalogue.Entry) -> None:
        name = self._name if entry.name == self.chosen.name else entry.name
        try:
            self.form.use(name, self._overrides if name == self._name else None)
        except WorkbenchError as error:
            self._say(str(error))
            return
        if self.runs.value == NEW and entry.name != self._recipe:
            self.out.value = told(_free(self.folder.path.parent / entry.name))
        self._recipe = entry.name

    def _run_chosen(self, change: Mapping[str, Any]) -> None:
        with self._lock:
            if change["new"] == NEW:
                self.fold.selected_index = 0
                path = _free(self.folder.path.parent / self.form.recipe.name)
            else:
                path = Path(change["new"])
            self.out.value = told(path)
            if path != self.folder.path:
                self._attach(RunWatch(path), self.form.recipe)

    def _attach(self, watch: RunWatch, recipe: AnyRecipe | None = None) -> None:
        self.watch = watch
        self.view.attach(watch, recipe)
        self._enable()

    def _press(self, name: str) -> None:
        """A button; what speaks against it is said beside it."""
        with self._lock:
            self._say("")
            try:
                if name == "Start":
                    self._begin(self.form.recipe, place(self.out.value))
                elif name == "Continue" and self.watch.state != "paused":
                    self._begin(_unlimited(self.folder), self.folder.path)
                else:
                    ask(self.folder.path, WORDS[name])
            except WorkbenchError as error:
                self._say(str(error))
            self.refresh()

    def _begin(self, recipe: AnyRecipe, out: Path) -> None:
        text = isinstance(recipe, Recipe)
        child = background.begin(
            recipe,
            out,
            processes=self._processes,
            track=self._track,
            samples=self.samples if text else None,
        )
        _children.append(child)
        self.fold.selected_index = None
        self._attach(RunWatch(out.resolve(), child), recipe)
        self._offer_runs()

    def _say(self, text: str) -> None:
        lines = html.escape(visible(text)).replace("↵", "<br>")
        wrong = f"<div class='workbench-wrong' role='alert'>{lines}</div>"
        self.said.value = wrong if text else ""

    def _enable(self) -> None:
        state = self.watch.state
        last = self.watch.step >= self.watch.steps
        possible = {
            "Start": state == "new" or (state == "failed" and not self.folder.exists()),
            "Pause": state == "running",
            "Continue": state in ("paused", "stopped", "lost")
            or (state == "failed" and self.folder.exists())
            or (state == "done" and not last),
            "Stop": state in ("running", "paused"),
        }
        for name, button in self.buttons.items():
            button.disabled = not possible[name]

    def refresh(self) -> None:
        """Look at the run, and draw what is new."""
        with self._lock:
            before = self.watch.state
            self.view.refresh()
            if self.watch.state != before:
                self._settled()
            self._enable()

    def _settled(self) -> None:
        """The run stands otherwise than before: the pictures in its folder follow."""
        if self.watch.state in ("stopped", "done", "failed"):
            self.keep()
        self._offer_runs()

    def _follow(self) -> None:
        """Look again and again in a thread: the page stays alive while cells run."""
        _shown[:] = [self]
        for work in (self._look_again, self._list_recipes):
            threading.Thread(target=work, daemon=True, name="workbench-view").start()

    def _list_recipes(self) -> None:
        """All recipes take seconds to read; the view is there before."""
        entries = catalogue.entries()
        with self._lock:
            self.picker.fill(entries)

    def _look_again(self) -> None:
        while _shown and _shown[0] is self:
            time.sleep(POLL_S)
            try:
                self.refresh()
            except (OSError, ValueError, WorkbenchError) as error:
                # a folder that is being deleted, a disk that is away: it may come back
                log.info("the view of %s waits: %s", self.folder.path, error)


TIPS = {
    "Start": "Train in a process of its own, which a closed tab or a restarted kernel leaves alone",
    "Pause": "Wait after the update at work, with a checkpoint, keeping everything in memory",
    "Continue": "Go on from exactly where it is",
    "Stop": "Write a checkpoint after the update at work, and end the process",
}
WORDS: dict[str, Any] = {"Pause": "pause", "Continue": "continue", "Stop": "stop"}
_children: list[subprocess.Popen[bytes]] = []
"""processes that this one has started; held, so that their ends are noticed"""


def _state(path: Path) -> str:
    watch = RunWatch(path)
    watch.poll()
    return watch.state


def _free(path: Path) -> Path:
    """This path, or the next one with a number at which nothing is."""
    tries = (path.with_name(f"{path.name}-{i}") for i in range(2, 1000))
    return path if not path.exists() else next(p for p in tries if not p.exists())


def _unlimited(folder: RunFolder) -> AnyRecipe:
    """The recipe of a run, without the time limit that may have ended it."""
    recipe = folder.recipe()
    train = recipe.train.model_copy(update={"max_seconds": None})
    return recipe.model_copy(update={"train": train})
