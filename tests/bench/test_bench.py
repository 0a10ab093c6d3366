"""The benchmark's own logic: who takes turns, what counts as disturbed, what a row says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import configurations, limits, peers, report, run, timing
from bench.__main__ import main, tried
from bench.case import BOTH, FWD, PEAK, Case, Ways, apart, together
from bench.cases import GROUPS, fast_weights, models
from bench.configurations import CONFIGURATIONS, ENWIK8, Configuration
from bench.timing import TINY, Effort, Times, take_turns

CPU = torch.device("cpu")
ASKED = {"name", "size", "backend", "peer", "ours_ms", "peer_ms", "ratio", "target"}


def machine(gemm: float = 100.0, copy: float = 10.0) -> limits.Limits:
    kinds = (("fp32 GEMM", gemm), ("bf16 GEMM", 4 * gemm), ("copy", copy))
    made = (limits.Limit(n, "", "FLOP", rate, 1.0, (1.0, 1.0), False) for n, rate in kinds)
    return limits.Limits(tuple(made))


def case_of(ways: Ways, **told: Any) -> Case:
    return Case("test", "op", "T1", FWD, lambda device: ways, **told)


class Clock:
    """Time that passes as the calls of a test say."""

    def __init__(self, costs: dict[str, list[tuple[float, bool]]]) -> None:
        self.now, self.costs, self.order = 0.0, costs, list[str]()

    def candidates(self) -> dict[str, Callable[[], object]]:
        return {name: lambda name=name: name for name in self.costs}

    def sample(self, call: Callable[[], object], repeats: int) -> tuple[float, bool]:
        name = str(call())
        self.order.append(name)
        ms, disturbed = (
            self.costs[name].pop(0) if len(self.costs[name]) > 1 else self.costs[name][0]
        )
        self.now += ms * repeats / 1e3
        return ms, disturbed

    def take_turns(self, effort: Effort) -> dict[str, Times]:
        names = self.candidates()
        return take_turns(names, effort, None, lambda: self.now, self.sample)


def test_candidates_take_turns() -> None:
    clock = Clock({"a": [(1.0, False)], "b": [(2.0, False)]})
    times = clock.take_turns(Effort(rounds=3, sample_s=0.0))
    assert clock.order == ["a", "b", "a", "b"] + 3 * ["a", "b"]
    assert times["a"].median_ms == 1.0 and times["b"].median_ms == 2.0


def test_a_disturbed_sample_is_taken_again_and_left_out() -> None:
    quiet, loud = (1.0, False), (9.0, True)
    clock = Clock({"a": [quiet, quiet, loud, quiet, quiet, quiet]})
    times = clock.take_turns(Effort(rounds=3, sample_s=0.0))["a"]
    assert times.quiet_ms == [1.0] * 3 and times.disturbed_ms == [9.0]
    assert times.median_ms == 1.0 and not times.is_disturbed


def test_disturbed_samples_count_where_there_are_no_others_and_say_so() -> None:
    clock = Clock({"a": [(9.0, True)]})
    times = clock.take_turns(Effort(rounds=3, sample_s=0.0))["a"]
    assert times.is_disturbed and times.median_ms == 9.0
    few = Times(quiet_ms=[1.0, 1.0], disturbed_ms=[5.0, 6.0, 7.0])
    assert few.is_disturbed and few.median_ms == 5.0


def test_a_slow_candidate_and_a_spent_budget_shorten_the_rounds() -> None:
    clock = Clock({"fast": [(1.0, False)], "slow": [(5000.0, False)]})
    times = clock.take_turns(Effort(rounds=5, sample_s=0.0, budget_s=1e9, slow_s=4.0))
    assert len(times["fast"].quiet_ms) == 5 and len(times["slow"].quiet_ms) == 2
    assert clock.order.count("slow") == 3
    clock = Clock({"a": [(100.0, False)]})
    assert len(clock.take_turns(Effort(rounds=9, sample_s=0.0, budget_s=0.35))["a"].quiet_ms) == 3


def test_short_calls_are_repeated() -> None:
    calls = []
    times = take_turns({"a": lambda: calls.append(1)}, Effort(rounds=2, sample_s=0.01))
    assert len(calls) > 20 and 0 <= times["a"].median_ms < 10


def test_the_spread_is_of_quartiles() -> None:
    assert Times([1.0, 2.0, 3.0, 4.0, 100.0]).spread_ms == (2.0, 4.0)
    assert Times([3.0, 1.0]).spread_ms == (1.0, 3.0)


def test_foreign_use_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    monkeypatch.setattr(timing, "STAT", stat)
    monkeypatch.setattr(timing, "own_s", lambda: 0.0)

    def count(ticks: int) -> None:
        stat.write_text(f"cpu {ticks} 0 0 50 0 0 0 0 0 0\ncpu0 1 2 3\n")

    count(100)
    assert timing.sample_ms(lambda: count(101), 1)[1] is False
    assert timing.sample_ms(lambda: count(200), 1)[1] is True
    stat.unlink()
    # nobody counts: nothing is called disturbed
    assert timing.sample_ms(lambda: None, 1)[1] is False


def test_disturbed_limits_are_measured_again_and_the_best_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def disturbed(rate: float, is_disturbed: bool) -> limits.Limits:
        (gemm, *others) = machine(rate).all_
        return limits.Limits((replace(gemm, disturbed=is_disturbed), *others))

    found = [disturbed(50.0, True), disturbed(90.0, True), disturbed(80.0, False), machine(99.0)]
    monkeypatch.setattr(limits, "measure", lambda *_: found.pop(0))
    # the best so far was disturbed, so it goes on
    assert limits.measure_quietly(CPU, TINY).rate("fp32 GEMM") == 99.0
    assert machine(10.0).best(machine(5.0, 20.0)).rate("copy") == 20.0
    assert machine(10.0).best(machine(5.0)).rate("fp32 GEMM") == 10.0


def test_a_row_says_what_was_measured() -> None:
    x = torch.randn(50, 50)
    ways = Ways({"cpp": lambda: (x @ x,)}, {"b": lambda: (x @ x,)}, {"c": "c is not installed"})
    case = case_of(ways, flops=2e9, targets={"b": 2.0, "c": 3.0, PEAK: 0.5})
    rows = list(run.rows_of(case, CPU, machine(), TINY))
    assert [row["peer"] for row in rows] == ["b", "c", "fp32 GEMM peak"]
    measured, missing, peak = rows
    assert all(set(row) >= ASKED for row in rows)
    assert measured["ratio"] == measured["peer_ms"] / measured["ours_ms"]
    assert measured["target"] == 2.0 and measured["backend"] == "cpp"
    assert measured["gemm_fraction"] == pytest.approx(2e9 / measured["ours_ms"] / 1e6 / 100)
    assert peak["ratio"] == pytest.approx(measured["gemm_fraction"]) and peak["target"] == 0.5
    assert missing["ratio"] is None and "not installed" in missing["note"]
    assert missing["target"] == 3.0 and missing["ours_ms"] == measured["ours_ms"]
    json.dumps(rows)


def test_targets_are_for_the_preferred_backend() -> None:
    one = torch.ones(1)
    ways = Ways({"cpp": lambda: (one,), "chunked": lambda: (one,)}, {"b": lambda: (one,)})
    rows = list(run.rows_of(case_of(ways, targets={"b": 2.0}), CPU, machine(), TINY))
    assert [(row["backend"], row["target"]) for row in rows] == [("cpp", 2.0), ("chunked", None)]


def test_an_opponent_that_computes_something_else_is_refused() -> None:
    ways = Ways({"cpp": lambda: (torch.ones(3),)}, {"b": lambda: (torch.full((3,), 1.01),)})
    with pytest.raises(run.Disagreement, match=r"peer b is 1.0e-02 off"):
        list(run.rows_of(case_of(ways), CPU, machine(), TINY))
    ways.peers["b"] = lambda: (torch.tensor([1.0, float("nan"), 1.0]),)
    with pytest.raises(run.Disagreement, match="nan off"):
        list(run.rows_of(case_of(ways), CPU, machine(), TINY))
    ways.peers["b"], ways.partial = lambda: (torch.ones(3),), frozenset({"b"})
    ways.ours["cpp"] = lambda: (torch.ones(3), torch.ones(1))
    assert next(run.rows_of(case_of(ways), CPU, machine(), TINY))["error"] == 0
    ways.peers["b"] = lambda: (torch.zeros(3),)
    with pytest.raises(run.Disagreement):
        list(run.rows_of(case_of(ways), CPU, machine(), TINY))
    ways.unlike = frozenset({"b"})
    (row,) = run.rows_of(case_of(ways), CPU, machine(), TINY)
    assert "not the same" in row["note"]
    with pytest.raises(AssertionError, match="2 and 1 results"):
        apart((torch.ones(1), torch.ones(1)), (torch.ones(1),))
    assert not apart((torch.ones(1), torch.tensor([float("nan")])), (torch.ones(1),) * 2) <= 1


def test_a_peer_that_fails_is_missing_and_ours_must_not() -> None:
    def fails() -> tuple[torch.Tensor, ...]:
        raise ValueError("only heads of 128")

    one = lambda: (torch.ones(1),)  # noqa: E731
    ways = Ways({"cpp": one}, {"b": fails, "c": one})
    c, b = run.rows_of(case_of(ways, targets={"b": 2.0}), CPU, machine(), TINY)
    assert c["ratio"] and b["note"] == "fails here: ValueError: only heads of 128"
    assert b["ratio"] is None and b["target"] == 2.0
    with pytest.raises(ValueError, match="only heads"):
        list(run.rows_of(case_of(Ways({"cpp": fails}, {"c": one})), CPU, machine(), TINY))


def test_without_a_backend_the_row_says_so() -> None:
    (row,) = run.rows_of(case_of(Ways({})), CPU, None, TINY)
    assert set(row) >= ASKED and row["ratio"] is None and "no backend" in row["note"]


def test_memory_is_the_peak_of_the_call() -> None:
    from bench.memory import peak_mb

    def holds_for_a_while() -> None:
        torch.full((5_000_000,), 1.0).sum()

    found = peak_mb(holds_for_a_while)
    if found is None:
        pytest.skip("this system does not tell")
    assert 18 < found < 40


def test_missing_peers_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peers, "PEERS", tmp_path / "none")
    monkeypatch.setattr(peers.sys, "path", [])
    with pytest.raises(peers.Missing, match="install_peers"):
        peers.fla_delta()
    (tmp_path / "none").mkdir()
    told = {"why_not": {"flash-linear-attention": "pip download: no network"}}
    (tmp_path / "none" / "why_not.json").write_text(json.dumps(told))
    with pytest.raises(peers.Missing, match="no network"):
        peers.fla_delta()
    size = fast_weights.Size(32, 4, 4, 1, 1)
    ways = fast_weights.make("delta_rule", size, FWD, torch.float32, CPU)
    assert fast_weights.LOOP in ways.peers and "no network" in ways.missing[fast_weights.FLA32]


@pytest.mark.parametrize("op", ["delta_rule", "sum_rule"])
@pytest.mark.parametrize("way", [FWD, BOTH])
def test_all_ways_of_a_rule_agree(op: str, way: str) -> None:
    case = fast_weights.case(op, fast_weights.Size(64, 12, 8, 2, 2), way)
    rows = list(run.rows_of(case, CPU, None, TINY))
    assert fast_weights.LOOP in {row["peer"] for row in rows}
    # the peers are here for those who ran `make bench`; then they must agree too
    assert all(row["ratio"] or row["note"] for row in rows)


@pytest.mark.parametrize("make", [fast_weights.half, fast_weights.normalised])
def test_other_types_and_sums_inside_agree(make: Callable[..., Ways]) -> None:
    size = fast_weights.Size(40, 12, 8, 2, 2)
    for op in ("delta_rule", "sum_rule"):
        ways = make(op, size, BOTH, CPU)
        if not ways.ours:
            pytest.skip("no kernel was built")
        rows = run.rows_of(case_of(ways, tolerance=5e-2), CPU, None, TINY)
        assert all(row["ratio"] > 0 and row["error"] < 5e-2 for row in rows)


def test_work_gives_the_gradient_of_every_argument() -> None:
    x, y = torch.randn(3), torch.randn(3)
    work = together(lambda a, b: a * b, [x, y], BOTH, [torch.full((3,), 2.0)])
    assert apart(work(), (x * y, 2 * y, 2 * x)) == 0
    assert len(together(lambda a, b: (a * b, a), [x, y], FWD, [])()) == 1


def test_every_case_has_its_targets_among_its_peers() -> None:
    cases = [case for group in GROUPS.values() for case in group()]
    names = [(c.name, c.size, c.way, c.dtype, c.cuda) for c in cases]
    assert len(set(names)) == len(names), "a case twice"
    assert all(c.group in GROUPS for c in cases)
    asked = {(c.name, t) for c in cases for t in c.targets.values()}
    assert {("delta_rule", 10.0), ("delta_rule", 40.0), ("sum_rule", 1.8)} <= asked
    assert {("delta_rule", 0.7), ("sum_rule", 0.7), ("delta_rule", 0.6)} <= asked
    assert {("forget_mult", 7.0), ("span attention, one long head", 4.0)} <= asked
    assert ("sliding windows", 2.0) in asked
    steps = {("TXL char", 1.5), ("span 4096, spread", 3.5), ("AWD-QRNN", 1.05)}
    assert asked >= steps | {("DPFP-3 delta (t16)", 5.0), ("TXL evaluation", 3.0)}


@pytest.mark.parametrize("config", CONFIGURATIONS, ids=lambda c: c.name)
def test_a_step_of_each_configuration(config: Configuration) -> None:
    small = replace(config, T=3, B=2)
    assert models.training(small, CPU)() == ()
    if config.name in ("TXL char", "AWD-QRNN", "DPFP-3 delta (t16)"):
        assert models.reading(small, CPU)() == ()


def test_a_case_that_fails_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(device: torch.device) -> Ways:
        raise RuntimeError("no memory\nleft")

    fine = case_of(Ways({"cpp": lambda: (torch.ones(1),)}), tiny=True)
    cases = [replace(fine, make=broken), fine]
    monkeypatch.setitem(GROUPS, "recurrent", lambda: cases)
    assert main(["--tiny", "--groups", "recurrent", "--out", str(tmp_path)]) == 1
    *_, failed, measured = json.loads((tmp_path / "bench.json").read_text())
    assert failed["note"] == "FAILED: RuntimeError: no memory" and failed["ratio"] is None
    assert measured["ours_ms"] > 0 and "FAILED" in capsys.readouterr().out


def test_targets_come_first_and_late_only_they(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = Ways({"cpp": lambda: (torch.ones(1),)}, {"b": lambda: (torch.ones(1),)})
    plain = replace(case_of(ways, tiny=True), group="recurrent")
    asked = replace(plain, name="asked", targets={"b": 2.0})
    gpu = replace(asked, name="gpu", cuda=True)
    monkeypatch.setitem(GROUPS, "recurrent", lambda: [gpu, plain, asked])
    words = ["--tiny", "--groups", "recurrent", "--out", str(tmp_path), "--minutes", "1e-9"]
    assert main(words) == 0
    rows = [r for r in json.loads((tmp_path / "bench.json").read_text()) if r["group"] != "limits"]
    assert [row["name"] for row in rows][:2] == ["asked", "op"]
    assert rows[0]["ratio"] > 0 and rows[0]["case_s"] > 0
    assert rows[1]["ratio"] is None and "--minutes" in rows[1]["note"]
    told = capsys.readouterr().out
    assert "asked T1 fwd against b" in told and "recurrent" in told
    if not torch.cuda.is_available():
        assert rows[2]["target"] == 2.0 and rows[2]["note"] == "needs an NVIDIA GPU"


def test_a_case_that_fails_keeps_its_targets() -> None:
    def broken(device: torch.device) -> Ways:
        raise RuntimeError("no memory")

    case = replace(case_of(Ways({}), targets={"b": 2.0, "c": 3.0}), make=broken)
    rows = tried(case, CPU, machine(), TINY)
    assert [(row["peer"], row["target"], row["failed"]) for row in rows] == [
        ("b", 2.0, True),
        ("c", 3.0, True),
    ]


def test_the_step_in_half_precision_runs() -> None:
    small = replace(ENWIK8, T=3, B=1, model=lambda: configurations.xl(n_layer=1))
    ways = models.in_half(small, CPU)
    assert ways.ours["auto"]() == () and ways.measured_ms == {"60 ms asked for": 60}
    assert 37e6 < sum(p.numel() for p in configurations.enwik8().parameters()) < 40e6


def test_given_times_are_scaled_and_measured_ones_are_not() -> None:
    ways = Ways({"auto": lambda: ()}, given_ms={"original": 300.0}, measured_ms={"here": 200.0})
    case = case_of(ways, targets={"original": 1.5, "here": 1.5})
    here, given = run.rows_of(case, CPU, machine(gemm=360.0), TINY)
    assert given["peer_ms"] == 150.0 and here["peer_ms"] == 200.0
    assert given["ratio"] == 150.0 / given["ours_ms"] and given["target"] == 1.5
    assert "300 ms at 180 GFLOP/s" in given["note"]


def test_times_of_the_originals_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "originals_ms", {})
    path = tmp_path / "ms.json"
    path.write_text('{"TXL char": 500}')
    main(["--tiny", "--out", str(tmp_path), "--groups", "models", "--originals", str(path)])
    assert models.originals_ms == {"TXL char": 500.0}
    path.write_text('{"TXL chars": 500}')
    with pytest.raises(SystemExit, match=r"got \['TXL chars'\], expected names of \['TXL char'"):
        main(["--tiny", "--out", str(tmp_path), "--originals", str(path)])


def test_marks_and_the_verdict_are_honest() -> None:
    row = run.blank(case_of(Ways({})), "cpp", "b", "")
    met, missed, open_ = (row | {"ratio": r, "target": 2.0} for r in (2.0, 1.999, None))
    assert report.mark(met) == "2 met" and report.mark(missed) == "2 NOT"
    assert report.mark(missed | {"disturbed": True}) == "2 NOT~" and report.mark(open_) == "2 ?"
    assert report.verdict([met, missed, open_]) == "targets: 1 of 3 met, 1 not measured"
    assert report.number(1.999) == "2" or report.number(1.999).startswith("2")


def test_rows_that_are_not_measured_again_are_kept_on_demand(tmp_path: Path) -> None:
    common = {"command": "c", "time": "t", "device": "d", "threads": 1, "versions": {}}
    blank = run.blank(case_of(Ways({})), "x", None, "") | common
    limit, a, b = blank | {"group": "limits"}, blank, blank | {"name": "other"}
    report.write([limit, a, b], tmp_path)
    new = a | {"backend": "new"}
    kept = report.write([limit, new], tmp_path, keep=True)
    assert kept == [limit, b, new]
    assert json.loads((tmp_path / "bench.json").read_text()) == kept
    assert (tmp_path / "bench.md").read_text().count("T1 fwd") == 3
    assert report.write([limit, b], tmp_path) == [limit, b]


def test_the_whole_run_at_a_tiny_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tiny", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "bench.json").read_text())
    assert {row["group"] for row in rows} >= {"limits", "fast_weights", "recurrent", "evaluation"}
    assert all(ASKED | {"device", "versions", "command"} <= set(row) for row in rows)
    told = capsys.readouterr().out
    assert "limit: fp32 GEMM" in told and "targets: " in told and "bench.json" in told
