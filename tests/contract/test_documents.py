"""What the documents show is true: the example runs, the files and commands they name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from workbench.models.mixers.base import MixerConfig

ROOT = Path(__file__).resolve().parents[2]
README, CONTRIBUTING = ((ROOT / n).read_text("utf-8") for n in ("README.md", "CONTRIBUTING.md"))


def test_the_example_mixer_obeys_the_laws() -> None:
    (source,) = re.findall(r"```python\n(.*?)```", CONTRIBUTING, re.DOTALL)
    known = dict(MixerConfig.registry)
    try:
        # as a notebook cell would run it, without this file's own __future__ import
        code = compile(source, "CONTRIBUTING.md", "exec", dont_inherit=True)
        exec(code, {"__name__": "example"})
        mixers = [c.build(4).double() for c in MixerConfig.registry["leaky"].tiny()]
    finally:
        MixerConfig.registry.clear()
        MixerConfig.registry.update(known)
    for mixer in mixers:
        x_BTD = torch.randn(2, 9, 4, dtype=torch.float64)
        start = mixer.initial_state(2)
        whole, last = mixer(x_BTD, start)
        first, state = mixer(x_BTD[:, :5], start)
        second, state = mixer(x_BTD[:, 5:], state)
        torch.testing.assert_close(torch.cat([first, second], dim=1), whole)  # split, causal
        torch.testing.assert_close(state.mean_BD, last.mean_BD)
        assert not start.mean_BD.any()  # value
        assert last.mean_BD.any()


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_commands_and_files_exist(text: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", text, re.MULTILINE))
    assert named and {a or b for a, b in named} <= targets
    kinds = r"(?:workbench|notebooks|kernels|tests|data|\.ci)/[\w./-]*"
    paths = {p.rstrip(".") for p in re.findall(rf"`({kinds})`", text)}
    missing = {p for p in paths if not (ROOT / p).exists()}
    assert missing == set()


def rows(text: str) -> list[list[str]]:
    """The cells of every row of every table."""
    lines = (line.strip() for line in text.splitlines() if line.startswith("| "))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_figures_of_speed_are_those_of_the_record() -> None:
    (name,) = set(re.findall(r"`(tests/bench/records/[\w-]+\.md)`", README))
    record = (ROOT / name).read_text("utf-8")
    names, *measured = [row for row in rows(record) if len(row) > 7]
    wanted = ["what", "ms", "peer", "peer ms", "ratio", "target"]
    places = [names.index(name) for name in wanted]
    found = [[row[i].replace("NOT", "missed") for i in places] for row in measured]
    quoted = rows(README.split("| what | ms |")[1].split("\n\n")[0])
    assert len(quoted) > 5 and [row for row in quoted if row not in found] == []
    told = re.search(r"targets: (\d+) of (\d+) met, (\d+) not measured", record)
    assert told is not None
    met, asked, open_ = map(int, told.groups())
    assert (
        f"Of its {asked} targets {met} were met, {asked - met - open_} were missed and "
        f"{open_} need an NVIDIA GPU"
    ) in README


def test_the_map_of_data_has_every_room() -> None:
    rooms = {path.stem for path in (ROOT / "workbench" / "data").glob("[!_]*.py")}
    text = (ROOT / "workbench" / "data" / "__init__.py").read_text("utf-8").split('"""')[1]
    assert rooms - set(re.findall(r"\w+", text)) == set()
