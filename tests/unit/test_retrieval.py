"""Associative retrieval: sequences, memories against step-by-step rules, runs, early stopping."""

import itertools
import signal

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn import functional as F

import workbench
from workbench import kernels, retrieval
from workbench.config import load
from workbench.data.retrieval import RetrievalBatches, RetrievalConfig, questions
from workbench.errors import ConfigError, UnknownOriginal
from workbench.models.feature_maps import FavorConfig
from workbench.models.retrieval import read_clipped, read_delta, read_sum
from workbench.originals import fast_weight_synthetic as synthetic
from workbench.recipe import RetrievalRecipe, load_recipe
from workbench.train.config import StopConfig
from workbench.train.folder import RunFolder
from workbench.train.tasks import open_task
from workbench.train.trainer import Trainer

TINY = "retrieval-update-tiny"
CAPACITY = RetrievalConfig(n_pairs=9, replace=False, batch_size=3)
UPDATE = RetrievalConfig(n_pairs=9, replace=True, batch_size=3)


def test_capacity_writes_each_key_and_value_once():
    for keys, values, _ in (CAPACITY.sequences(1).sample() for _ in range(5)):
        assert sorted(keys) == list(range(9)) and sorted(values) == list(range(9, 18))


def test_update_writes_twice_as_many_and_asks_for_what_is_frequent():
    source, frequent = UPDATE.sequences(1), 0
    for _ in range(300):
        keys, values, query = source.sample()
        assert len(keys) == len(values) == 18 and query in keys
        assert values.min() >= 9 and values.max() < 18
        frequent += (keys == query).sum()
    # a key chosen by its position stands 1 + 17/9 times in a sequence, one chosen by name 2 times
    assert frequent / 300 == pytest.approx(1 + 17 / 9, abs=0.2)


def test_the_last_value_of_a_key_is_asked_for():
    tokens_BT, targets_BQ = questions(
        [
            (np.array([2, 0, 2, 1]), np.array([5, 6, 7, 8]), np.array([0, 2])),
            (np.array([1, 1, 1, 1]), np.array([5, 6, 7, 5]), np.array([1, 1])),
        ]
    )
    assert tokens_BT[0].tolist() == [2, 5, 0, 6, 2, 7, 1, 8, 0, 2]
    assert targets_BQ.tolist() == [[6, 7], [5, 5]]


def test_a_validation_asks_every_key_of_new_sequences():
    task = open_task(load_recipe(TINY, {"eval.n_sequences": 2, "data.replace": False}))
    model = task.recipe.model.build(task.vocab_size).eval()
    first = task.validate(model, 10)
    assert first.targets == 2 * 8 and task.validate(model, 10) == first
    assert task.validate(model, 20).loss_nats != first.loss_nats
    few = open_task(load_recipe(TINY, {"eval.n_sequences": 3, "eval.max_queries": 2}))
    assert few.validate(model, 10).targets == 3 * 2


def test_batches_continue_where_they_were():
    first = RetrievalBatches(UPDATE, seed=4)
    first.next()
    state = first.state()
    expected = [first.next() for _ in range(2)]
    again = RetrievalBatches(UPDATE, seed=5)
    again.restore(state)
    for batch in expected:
        assert torch.equal(again.next().tokens_BT, batch.tokens_BT)


def memory(T=7, V=4, F_=6, signed=False):
    draw = torch.Generator().manual_seed(2)
    make = torch.randn if signed else torch.rand
    q, k = (make(2, n, F_, generator=draw, dtype=torch.float64) for n in (3, T))
    values = torch.randint(V, (2, T), generator=draw)
    return q, k, F.one_hot(values, V).double(), torch.rand(2, T, 1, generator=draw).double()


def test_sum_reads_what_the_op_writes():
    q, k, v, _ = memory()
    _, W = kernels.sum_rule(k[:, :, None], k[:, :, None], v[:, :, None], k.new_zeros(2, 1, 6, 4))
    expected = q @ W[:, 0] / (q @ k.sum(1)[..., None])
    torch.testing.assert_close(read_sum(q, k, v.argmax(-1), 4), expected, rtol=1e-5, atol=1e-6)


def test_delta_replaces_where_sum_piles_up():
    """One key written twice, fully: the delta rule gives the second value, the sum rule both."""
    k = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    v = torch.eye(3)[None]
    q = k[:, :1]
    torch.testing.assert_close(read_delta(q, k, v, torch.ones(1, 3, 1))[0, 0], v[0, 2])
    torch.testing.assert_close(read_sum(q, k, v.argmax(-1), 3)[0, 0], torch.tensor([0.5, 0.0, 0.5]))


def test_the_clipped_rule_step_by_step():
    q, k, v, beta = memory(signed=True)
    W = torch.zeros(2, 4, 6, dtype=torch.float64)
    for t in range(7):
        old = (W @ k[:, t, :, None])[..., 0]
        new = beta[:, t] * v[:, t] + (1 - beta[:, t]) * old
        W = W + (new - old)[..., None] * k[:, t, None]
        if t > 0:
            W = W / W.flatten(1).norm(dim=1).clamp(min=1)[:, None, None]
    assert 0.5 < W.flatten(1).norm(dim=1).max() <= 1 + 1e-12, "clipping was never tried"
    expected = F.layer_norm(q @ W.mT, (4,))
    torch.testing.assert_close(read_clipped(q, k, v, beta), expected)


def test_favor_columns_are_orthogonal_and_drawn_at_every_pass():
    config = FavorConfig(n_projections=10, redraw="each_pass", orthogonal="columns", epsilon=0.0)
    favor = config.build(4).eval()
    first = favor.projection_KM.clone()
    overlap = (first.T @ first)[:4, :4]
    torch.testing.assert_close(overlap, torch.diag(overlap.diagonal()), atol=1e-5, rtol=0)
    favor.begin_segment()
    assert first.shape == (4, 10) and not torch.equal(favor.projection_KM, first)
    x = torch.randn(4)
    u = x @ favor.projection_KM
    expected = torch.cat([u, -u]).sub(x.square().sum() / 2).exp() / 20**0.5
    torch.testing.assert_close(favor(x), expected)


def test_the_originals_arguments_are_understood_or_refused():
    ctor = {"attention_type": "tanh", "update_rule": "fwm", "arg": 0, "n_keys": 5, "n_values": 5}
    ctor |= {"hidden_size": 4, "embedding_size": 7}
    assert synthetic.model_config(ctor)["feature_map"] == {"kind": "tanh"}
    for odd in (
        {"n_values": 6},
        {"attention_type": "cosine"},
        {"update_rule": "hebb"},
        {"bias": 1},
    ):
        with pytest.raises(UnknownOriginal, match="retrieval model: "):
            synthetic.model_config(ctor | odd)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"model.rule": "softmax"}, "softmax compares keys and queries themselves"),
        ({"model.feature_map": None}, "the other rules need a map"),
        ({"data.n_pairs": 1}, "data.n_pairs: "),
        ({"data.kind": "retrievel"}, "data: there is no field"),
        ({"train.carry": "reset"}, "train.carry is about texts"),
        ({"train.stop": {}}, "give one, or stop: null"),
        ({"eval.method": "windows"}, "there is no field 'method'"),
    ],
    ids=str,
)
def test_wrong_recipes_say_what_instead(overrides, says):
    with pytest.raises(ConfigError) as error:
        load_recipe(TINY, overrides)
    assert says in str(error.value)


def test_published_tables_keep_their_numbers_of_pairs(tmp_path):
    recipe = load_recipe("retrieval-update-64-favor64-delta")
    path = tmp_path / "resolved.yaml"
    path.write_text(recipe.to_yaml())
    table = load_recipe(path).source.results[0].by_pairs
    assert table[20] == 0.1023 and table[200] is None
    assert load_recipe(path) == recipe


def test_stopping():
    stop = StopConfig(loss_nats=0.1, patience=2)
    assert stop.reason([0.2, 0.3, 0.3, 0.2]) == "patience"
    assert stop.reason([0.2, 0.3, 0.3]) is None and stop.reason([0.2, 0.1]) == "loss"
    assert StopConfig(patience=2).reason([0.0]) is None


def test_a_run_learns_stops_and_is_then_done(tmp_path):
    run = workbench.start(TINY, out=tmp_path / "run")
    records = list(run)
    assert records[-1].kind == "done" and records[-1].reason == "loss"
    losses = [r.loss_nats for r in records if r.kind == "eval"]
    assert losses[-1] <= 0.001 < losses[0] and run.step < run.recipe.train.steps
    assert records[0].backends.keys() == {"delta_rule", "dpfp"}
    with pytest.raises(ConfigError, match=r"retrieval\.ipynb"):
        _ = run.corpus
    best = run.folder.load_model("best")
    assert open_task(run.recipe).validate(best, run.step).loss_nats == pytest.approx(losses[-1])
    assert list(workbench.start(TINY, out=tmp_path / "run")) == []
    assert run.folder.status()["state"] == "done"


def test_patience_ends_a_run_that_learns_nothing(tmp_path):
    changes = {"train.optimizer.lr": 1e-12, "train.stop": {"patience": 2}, "train.eval_every": 5}
    records = list(workbench.start(TINY, changes, out=tmp_path / "run"))
    losses = [r.loss_nats for r in records if r.kind == "eval"]
    best = losses.index(min(losses))
    assert records[-1].reason == "patience" and len(losses) == best + 1 + 3


def test_a_broken_off_run_continues_bit_for_bit(tmp_path):
    changes = {"train.stop": {"patience": 10}, "train.steps": 30, "train.eval_every": 7}
    changes |= {"train.checkpoint_every": 10, "train.log_every": 3}
    changes |= {
        "model.feature_map": {"kind": "favor", "n_projections": 5, "redraw": "each_pass"},
    }
    whole = list(workbench.start(TINY, changes, out=tmp_path / "whole"))
    part = workbench.start(TINY, changes, out=tmp_path / "part")
    list(itertools.takewhile(lambda record: record.step < 17, part))
    del part
    rest = list(workbench.start(TINY, changes, out=tmp_path / "part"))
    assert rest[0].step < 17 and rest[-1].step == whole[-1].step
    ends = (sorted(tmp_path.glob(f"{x}/checkpoints/*"))[-1] for x in ("whole", "part"))
    ours, theirs = (safetensors.torch.load_file(p / "weights.safetensors") for p in ends)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_sweep_goes_on_and_names_what_diverged(tmp_path, monkeypatch):
    names = {"delta": "retrieval-update-64-dpfp1-delta", "softmax": "retrieval-capacity-64-softmax"}
    changes = {"train.steps": 3, "model.d_key": 4}
    points = list(sweep := retrieval.Sweep(names, [20, 4], tmp_path, changes))
    assert [point.n_pairs for point in points] == [4, 4, 20, 20] and len(sweep) == 4
    assert all(point.steps == 3 and point.reason == "steps" for point in points)
    assert "published 0.0008" in sweep.describe(points[2])
    assert sweep.measured(names["delta"])[4] == points[0].loss
    monkeypatch.setattr(
        "workbench.train.trainer.Trainer.update", lambda trainer: pytest.fail("trained again")
    )
    assert [p.loss for p in retrieval.Sweep(names, [4, 20], tmp_path, changes)] == [
        p.loss for p in points
    ]


def test_an_interrupt_ends_the_sweep_and_it_goes_on_later(tmp_path, monkeypatch):
    update = Trainer.update

    def interrupted(trainer):
        if trainer.step == 2:
            signal.raise_signal(signal.SIGINT)
        update(trainer)

    monkeypatch.setattr(Trainer, "update", interrupted)
    sweep = retrieval.Sweep({"x": TINY}, [4, 5], tmp_path, {"train.steps": 6})
    assert [(p.n_pairs, p.steps, p.reason) for p in sweep] == [(4, 3, "interrupted")]
    monkeypatch.setattr(Trainer, "update", update)
    assert [(p.n_pairs, p.steps, p.reason) for p in sweep] == [(4, 6, "steps"), (5, 6, "steps")]


def test_divergence_is_a_point_without_a_loss(tmp_path):
    recipe = retrieval.retrieval_recipe(TINY, {"train.optimizer.lr": 1e30})
    point = retrieval.train(recipe, tmp_path)
    assert (point.loss, point.reason) == (None, "diverged")


def test_published_curves_and_capacities():
    assert retrieval.published("retrieval-capacity-64-dpfp2")[600] == 0.3234
    assert len(retrieval.Sweep({"x": "retrieval-capacity-64-elu"}, [], "runs")) == 30
    assert retrieval.capacity("retrieval-capacity-64-dpfp2") == 256
    assert retrieval.capacity("retrieval-capacity-64-softmax") is None
    with pytest.raises(ConfigError, match="is a language model's"):
        retrieval.Sweep({"x": "delta-python-tiny"}, [4], "runs")
    with pytest.raises(ConfigError, match="batch_size"):
        retrieval.Sweep({"x": TINY}, [4], "runs", {"data.batch_sice": 4})


def test_a_language_notebook_sends_retrieval_to_its_own(tmp_path):
    from workbench import notebook

    with pytest.raises(ConfigError, match=r"open notebooks/retrieval\.ipynb"):
        notebook.choose_recipe(TINY)
    assert isinstance(load(RetrievalRecipe, load_recipe(TINY)), RetrievalRecipe)
    assert RunFolder(tmp_path).records() == []
