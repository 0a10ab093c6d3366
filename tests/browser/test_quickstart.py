"""The quickstart in a browser: from a text of the user's to three models, and all of it again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from browser.book import FIGURE, Book
from workbench.train.folder import RunFolder

SMALL = {
    **{"model.d_model": 32, "data.batch_size": 4, "data.segment_len": 32},
    **{"train.log_every": 5, "train.eval_every": 10, "train.eval_tokens": 1000},
    **{"train.schedule": {"kind": "constant"}, "eval.segment_len": 128, "eval.batch_size": 1},
}
# the page holds only the cells near what is looked at; the notebook holds all
WORDS = """() => window.jupyterapp.shell.currentWidget.content.model.toJSON().cells.flatMap(
  cell => (cell.outputs ?? []).map(output => [
    output.text ?? [], output.data?.['text/plain'] ?? [], output.data?.['text/html'] ?? []
  ].flat().join(''))).join('\\n')"""
RUNS = ("first", "delta", "min_gru", "span")
TEXT = "<script>window.hit = 1</script> <img src=x onerror='window.hit = 1'> of name {} &amp;\n"


def test_from_an_own_text_to_an_own_mixer(
    open_notebook: Callable[..., Book], desk: Path, say: Callable[[str], None]
) -> None:
    (desk / "mine.txt").write_text("".join(TEXT.format(i * i) for i in range(900)), "utf-8")
    values = {"text": "mine.txt", "steps": 40, "out": "runs/quick", "overrides": SMALL}
    book = open_notebook("quickstart", prompt="<script>", **values)
    seconds = book.run_all(600)
    say(f"quickstart, 4 x 40 updates: first figure after {book.first_figure_s:.0f} s, "
        f"all after {seconds:.0f} s")  # fmt: skip

    folders = [RunFolder(desk / "runs" / "quick" / name) for name in RUNS]
    assert [folder.status()["step"] for folder in folders] == [40] * 4
    words = book.page.evaluate(WORDS)
    assert "Did you mean 'warmup_steps'?" in words
    assert "min_gru: 10 of 10 laws hold" in words
    assert [title for title in book.titles() if "is best" in title]
    # what the models wrote, and the text they learned from, is text
    assert "<script>window.hit" in words and "<b>&lt;script&gt;</b>" in words
    assert book.page.evaluate("window.hit") is None

    # run again: what is trained is opened, not trained
    records = [folder.path.joinpath("records.jsonl").stat().st_mtime_ns for folder in folders]
    book.run_all(600)
    again = [folder.path.joinpath("records.jsonl").stat().st_mtime_ns for folder in folders]
    assert again == records
    book.screenshot("quickstart", at=f"{FIGURE} >> nth=-1")
