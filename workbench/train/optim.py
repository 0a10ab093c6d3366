"""Optimizers: what turns gradients into the next weights, with the originals' clipping.

Two ways of clipping exist in the papers' codes. Global: the gradient of all parameters together
is scaled to `train.clip_norm`. Per tensor (adaptive-span's Adagrad, arXiv:1905.07799 code): each
parameter tensor on its own, by shrinking its step and not its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from workbench.config import Choice


class OptimizerConfig(Choice):
    """The slot `train.optimizer`."""

    lr: float = Field(gt=0)
    """The full learning rate; the schedule scales it."""

    @property
    def clips(self) -> Literal["global", "per_tensor"]:
        """Who applies `train.clip_norm`: the trainer to all gradients, or the optimizer itself."""
        return "global"

    def build(self, model: nn.Module, clip_norm: float | None) -> torch.optim.Optimizer:
        """The optimizer of all trainable parameters.

        Args:
            model: tied parameters count once.
            clip_norm: `train.clip_norm`; used here only where `clips` is "per_tensor".
        """
        raise TypeError(f"{type(self).__name__} does not define build(model, clip_norm)")


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def fused(parameters: Sequence[Tensor], devices: Sequence[str] = ("cpu", "cuda")) -> bool | None:
    """PyTorch's argument `fused`: whether one pass over the numbers makes an update.

    Args:
        parameters: of the optimizer.
        devices: kinds of device on which PyTorch has that pass.

    Returns:
        True, or None where it has none: then PyTorch takes what else is fast there.
    """
    # on a CPU it takes for granted that weight and gradient lie alike, and then reads wrong numbers
    # where they do not: autograd sees to it for weights without gaps
    served = (p.device.type in devices and p.is_floating_point() for p in parameters)
    return True if all(served) and all(p.is_contiguous() for p in parameters) else None


def take_over(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Go on from a `state_dict()`; how an update is computed stays this optimizer's affair.

    The state may come from another kind of device, or from a version that computed otherwise.
    """
    groups = [
        {**theirs, **{key: own[key] for key in ("fused", "foreach") if key in own}}
        for theirs, own in zip(saved["param_groups"], optimizer.param_groups, strict=True)
    ]
    # transposed on their way from another code, they would not lie as the weights do
    state = {
        parameter: {k: x.contiguous() if isinstance(x, Tensor) else x for k, x in entry.items()}
        for parameter, entry in saved["state"].items()
    }
    # counts of updates go to where the fused pass expects them only if it is named already here
    optimizer.load_state_dict({**saved, "param_groups": groups, "state": state})


class Adam(OptimizerConfig):
    """Adam (arXiv:1412.6980): Transformer-XL and the fast-weight models without weight decay."""

    kind: Literal["adam"] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running mean of the gradient and of its square."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2: this share of a weight is added to its gradient after clipping, as AWD-LSTM does."""

    def build(self, model: nn.Module, clip_norm: float | None) -> torch.optim.Optimizer:
        parameters = _trainable(model)
        return torch.optim.Adam(
            parameters,
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=fused(parameters),
        )


class AdamW(OptimizerConfig):
    """Adam with decoupled weight decay (arXiv:1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running mean of the gradient and of its square."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Share of a weight taken off per update, times the learning rate."""
    decay: Literal["matrices", "all"] = "matrices"
    """`matrices` leaves biases, norms and other one-dimensional parameters alone."""

    def build(self, model: nn.Module, clip_norm: float | None) -> torch.optim.Optimizer:
        decayed = [p for p in _trainable(model) if self.decay == "all" or p.ndim > 1]
        spared = [p for p in _trainable(model) if not (self.decay == "all" or p.ndim > 1)]
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": spared, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [g for g in groups if g["params"]],
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            fused=fused([*decayed, *spared]),
        )


class SGD(OptimizerConfig):
    """Stochastic gradient descent, with momentum if wanted."""

    kind: Literal["sgd"] = "sgd"
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Share of the last step that is repeated."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2: this share of a weight is added to its gradient after clipping."""

    def build(self, model: nn.Module, clip_norm: float | None) -> torch.optim.Optimizer:
        parameters = _trainable(model)
        return torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            fused=fused(parameters),
        )


class Adagrad(OptimizerConfig):
    """Adagrad: a step shrinks with the sum of all squared gradients so far."""

    kind: Literal["adagrad"] = "adagrad"
    eps: float = Field(default=1e-10, gt=0)
    """Added to the denominator."""
    clip: Literal["global", "per_tensor"] = "global"
    """`per_tensor`: as the adaptive-span code, see `PerTensorClippedAdagrad`."""

    @property
    def clips(self) -> Literal["global", "per_tensor"]:
        return self.clip

    def build(self, model: nn.Module, clip_norm: float | None) -> torch.optim.Optimizer:
        parameters = _trainable(model)
        if self.clip == "per_tensor":
            return PerTensorClippedAdagrad(
                parameters, lr=self.lr, eps=self.eps, clip_norm=clip_norm
            )
        return torch.optim.Adagrad(
            parameters, lr=self.lr, eps=self.eps, fused=fused(parameters, devices=("cpu",))
        )


class PerTensorClippedAdagrad(torch.optim.Optimizer):
    """Adagrad that clips each parameter tensor by shrinking its step.

        sum += g^2                       with the gradient as it came
        p   -= lr * min(1, clip / |g|) * g / (sqrt(sum) + eps)

    Hence a burst of gradient slows later steps in full, which clipping the gradient would hide.
    Paper: arXiv:1905.07799, the optimizer of its code (not described in the text).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        eps: float = 1e-10,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "eps": eps, "clip_norm": clip_norm})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["sum"] = torch.zeros_like(p, memory_format=torch.preserve_format)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; no value leaves the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)
        return loss

    def _update(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        total = self.state[p]["sum"].addcmul_(grad, grad)
        direction = grad / (total.sqrt() + group["eps"])
        if group["clip_norm"] is not None:
            norm = torch.linalg.vector_norm(grad)
            shrink = group["clip_norm"] / (norm + 1e-10)
            direction *= torch.where(norm > group["clip_norm"], shrink, torch.ones_like(shrink))
        p.add_(direction, alpha=-group["lr"])
