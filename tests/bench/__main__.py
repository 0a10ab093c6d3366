"""`python -m bench`: time everything, print the table, write `bench.json` and `bench.md`."""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from pathlib import Path

import torch

from bench import limits as machine
from bench import peers, report
from bench.case import Case
from bench.cases import GROUPS, models
from bench.configurations import CONFIGURATIONS
from bench.limits import Limits
from bench.run import Row, blank, limit_rows, rows_of
from bench.timing import QUICK, TINY, Effort
from workbench import kernels

ROOT = Path(__file__).resolve().parents[2]


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds: a minute")
    parser.add_argument("--tiny", action="store_true", help="small sizes: does everything run?")
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), help="default: all")
    parser.add_argument("--models", action="store_true", help="with the group more_models")
    parser.add_argument(
        "--originals",
        type=Path,
        help='JSON {"TXL char": ms, ...}: training steps of the originals on this machine',
    )
    parser.add_argument("--only", help="only cases whose name, size and way hold this text")
    parser.add_argument("--keep", action="store_true", help="keep what is not measured again")
    parser.add_argument("--threads", type=int, help="of the CPU; default: PyTorch's choice")
    parser.add_argument(
        "--minutes",
        type=float,
        help="after so long only what a target is set for; default: 9, with --quick 1; 0: no end",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench")
    args = parser.parse_args(words)
    args.groups = args.groups or [g for g in GROUPS if args.models or g != "more_models"]
    if args.minutes is None:
        chosen = args.models or args.tiny or "more_models" in args.groups
        args.minutes = 0.0 if chosen else 1.0 if args.quick else 9.0
    return args


def read_originals(path: Path) -> None:
    """Take over milliseconds of the originals, and refuse names that no configuration has."""
    told = json.loads(path.read_text(encoding="utf-8"))
    known = [config.name for config in CONFIGURATIONS]
    if unknown := sorted(set(told) - set(known)):
        sys.exit(f"{path}: got {unknown}, expected names of {known}")
    models.originals_ms.update({name: float(ms) for name, ms in told.items()})


def processor() -> str:
    """Its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.split(": ", 1)[1] for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def where(device: torch.device) -> dict[str, object]:
    """What every row says of its run."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else processor()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {"python": platform.python_version(), **peers.versions()},
        "command": shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        "time": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def wanted(case: Case, args: argparse.Namespace, device: torch.device) -> bool:
    told = f"{case.name} {case.size} {case.way}"
    in_this_run = case.tiny if args.tiny else case.quick if args.quick else case.full
    asked_for = in_this_run and (not args.only or args.only in told)
    # a target that this machine cannot meet or miss has its row all the same
    return asked_for and (fits(case, device) or bool(case.cuda and case.targets))


def fits(case: Case, device: torch.device) -> bool:
    """Whether a case is for such a device."""
    return case.cuda is None or case.cuda == (device.type == "cuda")


def in_order(args: argparse.Namespace, device: torch.device) -> list[Case]:
    """The cases of this run: first those that a target is set for, then by groups."""
    cases = [case for group in args.groups for case in GROUPS[group]()]
    chosen = [case for case in cases if wanted(case, args, device)]
    return sorted(chosen, key=lambda case: (not fits(case, device), not case.targets))


def unmeasured(case: Case, note: str) -> list[Row]:
    """A row that says why for every target of a case, at least one."""
    rows = [blank(case, "", peer, note) | {"target": x} for peer, x in case.targets.items()]
    return rows or [blank(case, "", None, note)]


def left_out(case: Case, device: torch.device, late: bool) -> list[Row]:
    """Rows that say why a case is not measured; none where it is."""
    if not fits(case, device):
        return unmeasured(case, "needs an NVIDIA GPU")
    if late and not case.targets:
        return unmeasured(case, "left out, the time was spent: --minutes")
    return []


def tried(case: Case, device: torch.device, limits: Limits, effort: Effort) -> list[Row]:
    """The rows of a case; where it fails, one that says how."""
    try:
        return list(rows_of(case, device, limits, effort))
    except Exception as error:
        # minutes of other cases must not be lost; the exit status tells
        if device.type == "cuda":
            torch.cuda.empty_cache()
        note = f"FAILED: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
        return [row | {"failed": True} for row in unmeasured(case, note)]


def save(
    rows: list[Row], limits: Limits, common: dict[str, object], args: argparse.Namespace
) -> list[Row]:
    """Write what is there so far, the limits first."""
    told = [row | common for row in limit_rows(limits)]
    return report.write([*told, *rows], args.out, args.keep)


def main(words: list[str] | None = None) -> int:
    args = arguments(words)
    if args.originals:
        read_originals(args.originals)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    effort = TINY if args.tiny else QUICK if args.quick else Effort()
    begin, printer = time.perf_counter(), report.Printer()
    print(kernels.prepare())
    common = where(device)
    print(f"{common['device']}, {common['threads']} threads, {common['versions']}")
    scale = 16 if args.tiny else 1
    limits = machine.measure_quietly(device, effort, scale)
    rows: list[Row] = []
    for row in limit_rows(limits):
        printer.show(row)
    failed, group, seconds = 0, "", dict[str, float]()
    prepared = time.perf_counter()
    for case in in_order(args, device):
        start = time.perf_counter()
        late = 0 < 60 * args.minutes < start - prepared
        found = left_out(case, device, late)
        if not found and case.group != group and not args.tiny:
            # machines have better minutes and worse ones: the best is the limit
            limits, group = limits.best(machine.measure(device, effort)), case.group
        found = found or tried(case, device, limits, effort)
        taken_s = time.perf_counter() - start
        seconds[case.group] = seconds.get(case.group, 0.0) + taken_s
        for row in found:
            rows.append(row | common | {"case_s": round(taken_s, 2)})
            printer.show(rows[-1])
            failed += row.get("failed", False)
        # whatever comes, what was measured is kept
        save(rows, limits, common, args)
    written = save(rows, limits, common, args)
    print("\n".join(report.targets(written)))
    print(report.verdict(written))
    print("; ".join(f"{name} {taken_s:.0f} s" for name, taken_s in seconds.items()))
    print(f"{time.perf_counter() - begin:.0f} s; written: {args.out / 'bench.json'}, bench.md")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
