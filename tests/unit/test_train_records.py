"""Records: what a run writes down, line by line."""

import json

import pytest

from workbench.train.records import (
    CheckpointRecord,
    DoneRecord,
    EvalRecord,
    TrainRecord,
    from_json,
    to_json,
)

RECORDS = [
    TrainRecord(
        step=20, tokens=640, loss_nats=2.5, penalties={"span": 0.01}, lr=1e-3, grad_norm=0.7,
        tokens_per_s=1000.0, elapsed_s=1.5, memory_bytes=4096,
        readings={"span": [[1.0, 2.0], [3.5]]}, backends={"delta_rule": "cpp"},
    ),
    EvalRecord(step=20, split="valid", loss_nats=2.4, tokens=99, method="carried", context_len=8,
               elapsed_s=2.0),
    CheckpointRecord(step=20, path="checkpoints/step-0000020", bytes=10, best=True, elapsed_s=2.1),
    DoneRecord(step=20, reason="steps", elapsed_s=2.2),
]  # fmt: skip


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.kind)
def test_a_record_survives_its_line(record) -> None:
    line = to_json(record)
    assert "\n" not in line
    assert json.loads(line)["kind"] == record.kind
    assert from_json(line) == record


def test_non_finite_numbers_stay_valid_json() -> None:
    record = EvalRecord(
        step=1, split="valid", loss_nats=float("nan"), tokens=1, method="carried", context_len=1,
        elapsed_s=float("inf"),
    )  # fmt: skip
    assert json.loads(to_json(record))["loss_nats"] is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"kind": "trian", "step": 1}', "expected a record of kind"),
        ("[1]", "expected a record of kind"),
        ('{"kind": "done", "step": 1}', "incomplete done record"),
        ('{"kind": "done", "step": 1, "reason": "x", "loss": 2}', r"no \['loss'\]"),
        ('{"kind": "done", "st', "delimiter|Unterminated"),
    ],
)
def test_what_is_no_record_is_refused(line: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_json(line)
