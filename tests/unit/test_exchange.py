"""Checkpoints of the papers' code as run folders, and back: what the file says, and what not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from span_checkpoint import saved, span_state
from torch import Tensor

from workbench import cli
from workbench.config import dump, load
from workbench.data.segments import Segments
from workbench.errors import (
    CheckpointError,
    ConfigError,
    HostileFile,
    UnknownOriginal,
)
from workbench.exchange import (
    Layout,
    export_checkpoint,
    import_checkpoint,
)
from workbench.models.language_model import ModelConfig
from workbench.originals.checkpoint import find
from workbench.originals.links import in_their_layout
from workbench.originals.names import Shell
from workbench.originals.reader import read
from workbench.originals.rebuild import rebuild
from workbench.recipe import Recipe
from workbench.train import checkpoint
from workbench.train.config import TrainConfig
from workbench.train.folder import RunFolder
from workbench.train.trainer import Trainer

GIVEN = Path(__file__).parents[1] / "golden" / "checkpoints"
SPAN, XL, AWD = (
    GIVEN / name for name in ("adaspan_enwik8_a.pt", "txl_enwik8_a.model.pt", "awd_lstm_asgd_a.pt")
)


def test_what_a_whole_module_says_is_in_the_recipe(tmp_path: Path) -> None:
    imported = import_checkpoint(XL, tmp_path / "run")
    recipe = imported.folder.recipe()
    assert isinstance(recipe, Recipe)
    assert recipe.data.segment_len == 9
    assert recipe.model.p_embedding == recipe.model.p_output == 0.1
    mixer = recipe.model.block_configs()[0].mixer
    assert dump(mixer)["p_attention"] == 0.05
    assert dump(mixer)["memory_len"] == 9
    assert recipe.train.carry == "keep"
    assert "txl_enwik8_a.model.pt" in recipe.source.notes
    assert imported.folder.status()["state"] == "done"


def test_the_text_is_told_by_the_number_of_symbols(tmp_path: Path) -> None:
    known = import_checkpoint(saved(span_state(28), tmp_path / "a.pt"), tmp_path / "a")
    corpus = known.folder.recipe().data.corpus
    assert dump(corpus) == {"kind": "published", "name": "text8", "rule": "adaptive-span"}
    other = import_checkpoint(saved(span_state(29), tmp_path / "b.pt"), tmp_path / "b")
    assert "29" in dump(other.folder.recipe().data.corpus)["path"]
    own = {"kind": "text", "path": "mine.txt", "level": "char"}
    given = import_checkpoint(tmp_path / "b.pt", tmp_path / "c", corpus=own)
    assert dump(given.folder.recipe().data.corpus)["path"] == "mine.txt"


def test_what_the_file_does_not_say_is_asked_for_and_told(tmp_path: Path) -> None:
    path = saved(span_state(), tmp_path / "a.pt")
    imported = import_checkpoint(path, tmp_path / "a", asked={"ramp": 5, "dropout": 0.2})
    recipe = imported.folder.recipe()
    mixer = dump(recipe)["model"]["stack"][0]["block"]["mixer"]
    assert mixer["span"]["ramp"] == 5
    assert "ramp: 5" in recipe.source.notes
    assert "span_init: 0.0" in recipe.source.notes
    assert "taken for ramp: 5" in str(imported)
    with pytest.raises(ConfigError, match="they ask for block_size, ramp"):
        import_checkpoint(path, tmp_path / "b", asked={"window": 5})
    with pytest.raises(ConfigError, match="ramp: got 'wide'"):
        import_checkpoint(path, tmp_path / "b", asked={"ramp": "wide"})
    assert not (tmp_path / "b").exists()


def test_a_recipe_gives_text_training_and_what_the_file_does_not_say(tmp_path: Path) -> None:
    path = saved(span_state(), tmp_path / "a.pt")
    plain = import_checkpoint(path, tmp_path / "a", asked={"ramp": 7}).folder
    recipe = import_checkpoint(path, tmp_path / "b", recipe=plain.path / "recipe.yaml").folder
    assert dump(recipe.recipe())["model"] == dump(plain.recipe())["model"]
    with pytest.raises(ConfigError, match="give the recipe, or the options"):
        import_checkpoint(path, tmp_path / "c", recipe="span-python-tiny", asked={"ramp": 7})
    with pytest.raises(UnknownOriginal, match="parameters"):
        import_checkpoint(path, tmp_path / "c", recipe="span-python-tiny")
    # a whole module says all of its model: the recipe's is not taken
    with pytest.raises(ConfigError, match=r"knows 37 symbols, but python-source has 256"):
        import_checkpoint(XL, tmp_path / "d", recipe="span-python-tiny")
    assert not (tmp_path / "d").exists()
    own = {"kind": "text", "path": "mine.txt", "level": "char"}
    imported = import_checkpoint(XL, tmp_path / "d", recipe="span-python-tiny", corpus=own)
    xl = imported.folder.recipe()
    assert xl.model.d_model == 18
    assert xl.train.steps == 300


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="nothing was written"):
        import_checkpoint(XL, tmp_path / "run")
    import_checkpoint(XL, tmp_path / "other")
    with pytest.raises(ConfigError, match="holds a run already"):
        import_checkpoint(AWD, tmp_path / "other")


def test_an_optimizers_file_is_told_from_a_models(tmp_path: Path) -> None:
    with pytest.raises(UnknownOriginal, match="an optimizer's state, and no model"):
        import_checkpoint(GIVEN / "txl_enwik8_a.optimizer.pt", tmp_path / "run")
    told = str(import_checkpoint(AWD, tmp_path / "awd"))
    assert "not taken over: the statistics of asgd after 317" in told


@pytest.mark.parametrize(
    ("file", "other", "key"),
    [
        (SPAN, None, "sum"),
        (XL, "txl_enwik8_a.optimizer.pt", "exp_avg_sq"),
        (GIVEN / "awd_qrnn_adam_a.legacy.pt", None, "exp_avg"),
        (GIVEN / "fwms_deltalstm_a.best_model.pt", "fwms_deltalstm_a.best_opt.pt", "exp_avg"),
    ],
    ids=["span", "xl", "awd", "fast-weight"],
)
def test_statistics_of_an_optimizer_go_where_their_parameters_go(
    file: Path, other: str | None, key: str, tmp_path: Path
) -> None:
    optimizer = None if other is None else GIVEN / other
    imported = import_checkpoint(file, tmp_path / "run", optimizer=optimizer)
    assert imported.statistics
    assert imported.optimizer is not None
    model = imported.folder.load_model()
    newest = checkpoint.newest(imported.folder.checkpoints)
    assert newest is not None
    state = checkpoint.load_state(newest)["optimizer"]["state"]
    ours = {}
    for index, (name, parameter) in enumerate(model.named_parameters()):
        assert state[index][key].shape == parameter.shape
        ours[name] = state[index][key]
    # back in the original's layout, these are the numbers that the optimizer had
    shapes = {name: x.shape for name, x in imported.original.tensors.items()}
    back = in_their_layout(ours, imported.original.links(), shapes)
    theirs = [entry[key] for entry in imported.optimizer.entries if entry]
    assert len(theirs) == len(back)
    assert all(any(torch.equal(x, y) for y in theirs) for x in back.values())


def test_a_run_goes_on_with_imported_statistics(tmp_path: Path) -> None:
    folder = import_checkpoint(SPAN, tmp_path / "run").folder
    data = torch.randint(38, (2, 41))
    trainer = Trainer(
        folder.load_model(),
        Segments(data.flatten(), 2, 10),
        load(TrainConfig, {"steps": 1, "optimizer": {"kind": "adagrad", "lr": 0.07}}),
        "imported",
    )
    newest = checkpoint.newest(folder.checkpoints)
    assert newest is not None
    trainer.adopt(checkpoint.load_state(newest))
    before = [s["sum"].sum().item() for s in trainer.optimizer.state.values()]
    assert min(before) >= 0 and max(before) > 0
    trainer.update()
    assert all(
        s["sum"].sum().item() >= b
        for s, b in zip(trainer.optimizer.state.values(), before, strict=True)
    )


CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda s: s.pop("layers.0.norm1.bias"), "lacks the parameters"),
    "unknown": (lambda s: s.update(extra=torch.ones(3)), "'extra' is neither"),
    "another copy": (
        lambda s: s.update(
            {
                "layers.0.attn.attn.persistent_memory.adaptive_span._mask.current_val": torch.ones(
                    2, 1, 1
                )
            }
        ),
        "neither a known parameter",
    ),
    "another mask": (
        lambda s: s["layers.0.attn.attn.adaptive_span._mask.mask_template"].add_(1),
        "is not what this model computes",
    ),
    "another shape": (lambda s: s.update({"out_emb.bias": torch.ones(27)}), "parameters"),
    "another program": (lambda s: s.pop("key_pe"), "another program"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_refused(change: str, tmp_path: Path) -> None:
    state = span_state()
    alter, words = CHANGES[change]
    alter(state)
    with pytest.raises(UnknownOriginal, match=words):
        import_checkpoint(saved(state, tmp_path / "a.pt"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_claimed_sizes_take_no_memory() -> None:
    model = read(XL)
    for name, value in {"n_head": 10**6, "d_model": 10**6, "n_token": 10**9}.items():
        before = model.state[name]
        model.state[name] = value
        original = find(model)
        with pytest.raises((UnknownOriginal, ConfigError)):
            rebuild(original, load(ModelConfig, original.model_config(), "model"), "xl")
        model.state[name] = before
    model.state["mem_len"] = 2**40
    with pytest.raises(CheckpointError, match="mem_len"):
        find(model)


def test_modules_in_circles_are_refused() -> None:
    model = read(XL)
    below: dict[str, Any] = model.state["_modules"]
    twin = Shell("torch.nn.modules.container.Sequential")
    below["loop"] = twin
    twin.state["_modules"] = {"a": twin, "b": twin}
    with pytest.raises(HostileFile, match="parts"):
        find(model)


def test_other_modules_are_named(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    with pytest.raises(UnknownOriginal, match=r"torch\.nn\.modules\.linear\.Linear"):
        import_checkpoint(tmp_path / "a.pt", tmp_path / "run")
    torch.save([], tmp_path / "b.pt")
    with pytest.raises(UnknownOriginal, match="a list"):
        import_checkpoint(tmp_path / "b.pt", tmp_path / "run")


def test_a_bare_or_a_wrapped_model_is_the_same_model() -> None:
    """Older revisions of AWD-LSTM saved the model alone; DataParallel may stand around one."""
    listed = find(read(AWD))
    bare = find(read(AWD)[0])
    assert bare.ctor | {"splits": listed.ctor["splits"]} == listed.ctor
    wrapper = Shell("torch.nn.parallel.data_parallel.DataParallel")
    wrapper.state["_modules"] = {"module": read(XL)}
    assert find(wrapper).ctor == find(read(XL)).ctor
    assert find(wrapper).prefix == "module."


def test_export_writes_what_the_original_loads(tmp_path: Path) -> None:
    path = saved(span_state(), tmp_path / "a.pt")
    import_checkpoint(path, tmp_path / "run")
    export_checkpoint(tmp_path / "run", tmp_path / "out.pt")
    back = torch.load(tmp_path / "out.pt", weights_only=True)
    want = torch.load(path, weights_only=True)["model"]
    assert list(back) == list(want)
    assert all(torch.equal(back[name], want[name]) for name in want)
    # what was exported is imported again
    again = import_checkpoint(tmp_path / "out.pt", tmp_path / "again").folder
    assert torch.equal(
        again.load_model().state_dict()["vocabulary.output.bias"], want["module.out_emb.bias"]
    )


def test_export_of_two_modules_keeps_them_apart(tmp_path: Path) -> None:
    import_checkpoint(AWD, tmp_path / "run")
    export_checkpoint(tmp_path / "run", tmp_path / "out.pt")
    back = torch.load(tmp_path / "out.pt", weights_only=True)
    assert list(back) == ["model"]
    assert torch.equal(back["model"]["decoder.weight"], back["model"]["encoder.weight"])


def test_export_takes_another_files_layout(tmp_path: Path) -> None:
    import_checkpoint(saved(span_state(), tmp_path / "a.pt"), tmp_path / "a")
    folder = RunFolder(tmp_path / "a")
    (folder.path / "original" / "layout.json").unlink()
    with pytest.raises(ConfigError, match="was not imported"):
        export_checkpoint(folder.path, tmp_path / "out.pt")
    export_checkpoint(folder.path, tmp_path / "out.pt", like=tmp_path / "a.pt")
    assert Layout.at(tmp_path / "out.pt").ctor == Layout.at(tmp_path / "a.pt").ctor
    larger = saved(span_state(n_layers=2), tmp_path / "b.pt")
    with pytest.raises(ConfigError, match="not that of"):
        export_checkpoint(folder.path, tmp_path / "c.pt", like=larger)
    wider = saved(span_state(31), tmp_path / "d.pt")
    with pytest.raises(ConfigError, match="not that of"):
        export_checkpoint(folder.path, tmp_path / "c.pt", like=wider)
    assert not (tmp_path / "c.pt").exists()


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = str(tmp_path / "run"), str(tmp_path / "out.pt")
    assert cli.main(["import-checkpoint", str(SPAN), "--out", run, "--set", "ramp=8"]) == 0
    assert "taken for ramp: 8" in capsys.readouterr().out
    assert cli.main(["export-checkpoint", run, out]) == 0
    assert read(out).keys() == read(SPAN)["model"].keys()
    (tmp_path / "bad.pt").write_bytes(b"cos\nsystem\n.")
    assert cli.main(["import-checkpoint", str(tmp_path / "bad.pt"), "--out", run]) == 2
    assert "os.system" in capsys.readouterr().err
    for wrong, told in (
        ([str(SPAN), "--set", "ramp=["], "--set ramp: got '[', which is no YAML"),
        ([str(SPAN), "--set", "ramp"], "--set: got 'ramp', expected NAME=VALUE"),
        ([str(SPAN), "--corpus", "{kind"], "--corpus: got '{kind', which is no YAML"),
        ([str(SPAN), "--corpus", "my.txt"], "data.corpus: got 'my.txt', expected named fields"),
        (["adaptive-span-enwik9"], "no file adaptive-span-enwik9; give the path"),
        ([str(tmp_path)], "not a file; give the checkpoint file itself"),
    ):
        assert cli.main(["import-checkpoint", "--out", str(tmp_path / "new"), *wrong]) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()
