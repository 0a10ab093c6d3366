"""A play button beside a slider."""

from __future__ import annotations

from typing import Any

import ipywidgets


def player(slider: Any, trait: str, first: int, last: int, interval_ms: int) -> ipywidgets.Play:
    """A play button that moves a slider, from where the slider stands.

    It follows the slider when it begins to play and not at each move: every move would be two
    messages to Python, and the figure would answer after both.

    Args:
        slider: what it moves.
        trait: of the slider, which it counts through: `value` or `index`.
        first, last: of that trait.
        interval_ms: from one to the next.
    """
    play = ipywidgets.Play(
        value=getattr(slider, trait),
        min=first,
        max=last,
        interval=interval_ms,
        show_repeat=False,
    )
    ipywidgets.jsdlink((play, "value"), (slider, trait))

    def follow(change: dict[str, Any]) -> None:
        if change["new"]:
            play.value = getattr(slider, trait)

    play.observe(follow, "playing")
    return play
