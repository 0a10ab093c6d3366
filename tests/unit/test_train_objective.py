"""The objective: terms keep their names, and nothing is dropped in silence."""

import pytest
import torch

from workbench.train.objective import objective, total


def test_terms_keep_their_names_and_add_up() -> None:
    nll_BT = torch.tensor([[1.0, 2.0, 6.0]], requires_grad=True)
    span = torch.tensor([0.25], requires_grad=True)
    terms = objective(nll_BT, {"span": span})
    assert {name: x.item() for name, x in terms.items()} == {"nll": 3.0, "span": 0.25}
    loss = total(terms)
    assert loss.shape == () and loss.item() == 3.25
    loss.backward()
    torch.testing.assert_close(nll_BT.grad, torch.full((1, 3), 1 / 3))
    torch.testing.assert_close(span.grad, torch.ones(1))


def test_what_cannot_be_added_is_refused() -> None:
    nll_BT = torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"'span' has shape \(2,\), expected a scalar"):
        objective(nll_BT, {"span": torch.ones(2)})
    with pytest.raises(ValueError, match="rename it"):
        objective(nll_BT, {"nll": torch.ones(())})
