"""The carry's functions, on a state with two tensors and an int."""

from typing import NamedTuple

import pytest
import torch

from workbench import carry


class State(NamedTuple):
    matrix: torch.Tensor
    vector: torch.Tensor
    length: int


def make(rows=4, length=7):
    return tuple(State(torch.randn(rows, 2, 3), torch.randn(rows), length) for _ in range(2))


def test_rows_and_join_are_inverse():
    whole = make()
    parts = [carry.rows(whole, 0, 1), carry.rows(whole, 1, 4)]
    for a, b in zip(carry.join(parts), whole, strict=True):
        assert torch.equal(a.matrix, b.matrix) and torch.equal(a.vector, b.vector)
        assert a.length == b.length and type(a) is State


def test_join_refuses_different_settings():
    with pytest.raises(ValueError, match=r"\[7\] and \[8\]"):
        carry.join([make(length=7), make(length=8)])


def test_detach_cuts_the_gradient_and_keeps_values():
    weight = torch.ones((), requires_grad=True)
    state = (State(weight * torch.ones(1, 2, 3), weight * torch.ones(1), 3),)
    assert state[0].matrix.requires_grad
    cut = carry.detach(state)
    assert not cut[0].matrix.requires_grad and torch.equal(cut[0].matrix, state[0].matrix)


def test_nbytes_counts_tensors_only():
    assert carry.nbytes(make(rows=4)) == 2 * 4 * (6 + 1) * 4


def test_flatten_round_trip_and_foreign_leaves():
    whole = make()
    again = carry.unflatten(carry.flatten(whole), like=make(rows=1))
    assert torch.equal(again[1].vector, whole[1].vector) and again[1].length == 7
    with pytest.raises(ValueError, match="leaves"):
        carry.unflatten([[torch.zeros(1)]], like=whole)


def test_to_moves_every_leaf():
    assert all(s.matrix.device.type == "meta" for s in carry.to(make(), "meta"))
