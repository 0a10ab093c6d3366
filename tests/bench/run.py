"""From cases to rows: check that all ways agree, time them in turns, compare with limits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.case import GIVEN_GFLOPS, PEAK, Case, Results, Ways, Work, apart
from bench.limits import Limits
from bench.memory import peak_mb
from bench.timing import Effort, Sample, Times, sample_ms, take_turns

Row = dict[str, Any]


class Disagreement(AssertionError):
    """Two ways of one computation gave different numbers, so that their times mean nothing."""


@dataclass(frozen=True)
class First:
    """What the first call of a candidate told."""

    sample: Sample
    memory_mb: float | None
    error: float = 0.0
    """distance from the first of ours"""


def first_calls(case: Case, ways: Ways, works: dict[str, Work], effort: Effort) -> dict[str, First]:
    """Call every candidate, and refuse those that compute something else. A peer that fails is
    taken out of `works` and becomes one that is missing.

    Raises:
        Disagreement: a candidate's numbers are not ours.
    """
    firsts, want = {}, None
    for name, work in list(works.items()):
        peer = name.removeprefix("peer ")
        try:
            first, results = first_call(work, effort)
        except Exception as error:
            if peer == name:
                raise
            # a peer need not take every size
            ways.missing[peer] = f"fails here: {type(error).__name__}: {str(error)[:120]}"
            del ways.peers[peer], works[name]
            continue
        results = ways.as_ours.get(peer, _same)(results)
        want = results if want is None else want
        compared = want[: len(results)] if peer in ways.partial else want
        error_ = 0.0 if peer in ways.unlike else apart(results, compared)
        if not error_ <= case.tolerance:
            raise Disagreement(
                f"{case.name} {case.size} {case.way}: {name} is {error_:.1e} off, at most "
                f"{case.tolerance:.0e} was expected"
            )
        firsts[name] = replace(first, error=error_)
    return firsts


def first_call(work: Work, effort: Effort) -> tuple[First, Results]:
    """What a candidate gives, what that takes, and how much memory."""
    kept: list[Results] = []
    memory_mb: list[float | None] = []
    sample = sample_ms(lambda: memory_mb.append(peak_mb(lambda: kept.append(work()))), 1)
    if sample[0] < 1e3 * effort.slow_s:
        # the first call may have started threads and filled caches
        memory_mb.append(peak_mb(work))
    return First(sample, memory_mb[-1]), kept.pop()


def _same(results: Results) -> Results:
    return results


def rows_of(
    case: Case, device: torch.device, limits: Limits | None, effort: Effort
) -> Iterator[Row]:
    """Time one case."""
    ways = case.make(device)
    if not ways.ours:
        yield blank(case, "", None, "no backend of ours runs here")
        return
    if not effort.all_backends:
        ways.ours = dict(list(ways.ours.items())[:1])
    works = {f"ours {name}": work for name, work in ways.ours.items()} | {
        f"peer {name}": work for name, work in ways.peers.items()
    }
    with warnings.catch_warnings():
        # peers warn of what they deprecate; ours are tested elsewhere
        warnings.simplefilter("ignore")
        firsts = first_calls(case, ways, works, effort)
        times = take_turns(works, effort, {name: first.sample for name, first in firsts.items()})
    for index, backend in enumerate(ways.ours):
        ours = f"ours {backend}"
        common = told(case, times[ours], firsts[ours], limits) | {"backend": backend}
        targets = case.targets if index == 0 else {}
        yield from against(case, ways, common, times, firsts, targets)
        yield from against_told(ways, common, targets, limits)
        if PEAK in targets and limits is not None:
            yield common | fraction(case, common, limits, targets[PEAK])


def against(
    case: Case,
    ways: Ways,
    common: Row,
    times: Mapping[str, Times],
    firsts: Mapping[str, First],
    targets: Mapping[str, float],
) -> Iterator[Row]:
    """One backend of ours beside each peer; alone where there is none."""
    for peer in ways.peers:
        theirs, first = times[f"peer {peer}"], firsts[f"peer {peer}"]
        yield common | {
            "peer": peer,
            "peer_ms": theirs.median_ms,
            "ratio": theirs.median_ms / common["ours_ms"],
            "target": targets.get(peer),
            "peer_spread_ms": theirs.spread_ms,
            "peer_samples": len(theirs.samples_ms),
            "peer_memory_mb": first.memory_mb,
            "error": first.error,
            "disturbed": common["disturbed"] or theirs.is_disturbed,
            "note": "comparable, not the same computation" if peer in ways.unlike else "",
        }
    for peer, why in ways.missing.items():
        yield common | {"peer": peer, "target": targets.get(peer), "note": why}
    if not any((ways.peers, ways.missing, ways.given_ms, ways.measured_ms)):
        yield common


def against_told(
    ways: Ways, common: Row, targets: Mapping[str, float], limits: Limits | None
) -> Iterator[Row]:
    """One backend of ours beside times that were measured outside of this run."""
    told = {peer: (ms, "measured outside of this run") for peer, ms in ways.measured_ms.items()}
    if limits is not None:
        slower = GIVEN_GFLOPS / limits.rate("fp32 GEMM")
        note = f"{{:.0f}} ms at {GIVEN_GFLOPS:.0f} GFLOP/s of fp32 GEMM, scaled to this machine's"
        given = ways.given_ms.items()
        told |= {peer: (ms * slower, note.format(ms)) for peer, ms in given}
    for peer, (ms, note) in told.items():
        yield common | {
            "peer": peer,
            "peer_ms": ms,
            "ratio": ms / common["ours_ms"],
            "target": targets.get(peer),
            "note": note,
        }


def blank(case: Case, backend: str, peer: str | None, note: str) -> Row:
    """A row without measurements."""
    return {
        "group": case.group,
        "name": case.name,
        "size": case.size,
        "way": case.way,
        "dtype": case.dtype,
        "backend": backend,
        "peer": peer,
        "ours_ms": None,
        "peer_ms": None,
        "ratio": None,
        "target": None,
        "note": note,
        "sweep": case.sweep,
        "x": case.x,
        "disturbed": False,
    }


def told(case: Case, ours: Times, first: First, limits: Limits | None) -> Row:
    """What is said of one backend, whoever is beside it."""
    ms = ours.median_ms
    row = blank(case, "", None, "") | {
        "ours_ms": ms,
        "ours_spread_ms": ours.spread_ms,
        "ours_samples": len(ours.samples_ms),
        "memory_mb": first.memory_mb,
        "disturbed": ours.is_disturbed,
        "gemm_gflops": None if limits is None else limits.rate(gemm_of(case)),
    }
    if case.flops:
        row["gflops"] = case.flops / ms / 1e6
        if limits is not None:
            row["gemm_fraction"] = row["gflops"] / limits.rate(gemm_of(case))
    if case.bytes_:
        row["gbytes_per_s"] = case.bytes_ / ms / 1e6
        if limits is not None:
            row["memory_fraction"] = row["gbytes_per_s"] / limits.rate("copy")
    return row


def gemm_of(case: Case) -> str:
    """The limit that a case's products are measured by."""
    return "bf16 GEMM" if case.dtype in ("bfloat16", "float16") else "fp32 GEMM"


def fraction(case: Case, common: Row, limits: Limits, target: float) -> Row:
    """The peak of products as a peer: the time in which it would do the same operations."""
    peak_ms = case.flops / limits.rate(gemm_of(case)) / 1e6
    return {
        "peer": gemm_of(case) + " peak",
        "peer_ms": peak_ms,
        "ratio": peak_ms / common["ours_ms"],
        "target": target,
    }


def limit_rows(limits: Limits) -> Iterator[Row]:
    """The limits as rows of the same list."""
    for limit in limits.all_:
        case = Case("limits", f"limit: {limit.name}", limit.size, "", lambda device: Ways({}))
        yield blank(case, "torch", None, "") | {
            "ours_ms": limit.ms,
            "ours_spread_ms": limit.spread_ms,
            "disturbed": limit.disturbed,
            "rate": limit.rate,
            "unit": f"G{limit.unit}/s",
        }
