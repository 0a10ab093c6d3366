"""What the live views share: alive in a browser, pictures everywhere else.

Whatever a panel draws comes from functions of `workbench.plots`, so that the pictures of an
unattended run, of a static page and of a saved notebook are those of the browser.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import ipywidgets
import plotly.graph_objects as go
from IPython.display import display

from workbench import notebook
from workbench.attendance import in_batch
from workbench.train.folder import RunFolder


class Panel(ABC):
    """A view of some data, to play with in a browser and to look at elsewhere."""

    @abstractmethod
    def stills(self) -> dict[str, go.Figure]:
        """The view as pictures: what to call each in the run folder -> the figure."""

    @abstractmethod
    def live(self) -> ipywidgets.Widget:
        """The view as a widget; called once, when it is shown."""

    def show(self, folder: RunFolder | None = None) -> None:
        """Put the view on the page: alive in a browser, as pictures in batch.

        Args:
            folder: whose `figures/` keep the pictures, which the report shows; None keeps none.
        """
        if not in_batch():
            display(self.live())
        for name, fig in self.stills().items():
            if folder is not None:
                notebook.keep_figure(folder, name, fig)
            if in_batch():
                notebook.show(fig)
