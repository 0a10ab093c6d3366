"""The published CUDA kernels' own numbers, on every backend of this machine.

Source: tests/golden/fwms_kernel_*.npz, made by running the code of arXiv:2102.11174 in double
precision; arrays are [N, H, L, E], tolerances are the files' own.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import usable

from workbench import kernels
from workbench.kernels.dispatch import OPS

FILES = {
    "delta_rule": [
        "fwms_kernel_delta_1x2x130x24",
        "fwms_kernel_delta_2x3x37x16",
        "fwms_kernel_delta_rawkeys_2x1x40x12",
        "fwms_kernel_delta_w0_1x2x60x24x8",
    ],
    "sum_rule": ["fwms_kernel_sum_2x3x37x16", "fwms_kernel_sum_w0_1x2x60x24x8"],
}
CASES = [
    pytest.param(op, backend, name, id=f"{name}-{backend}")
    for op, backend in usable()
    for name in FILES.get(op, [])
]


def close(got: torch.Tensor, want: np.ndarray, tolerance: float, floor: float) -> None:
    expected = torch.from_numpy(want).double()
    atol = tolerance * max(floor, expected.abs().max().item())
    torch.testing.assert_close(got.detach().double(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("op", "backend", "name"), CASES)
def test_published_kernel(op, backend, name, dtype, golden: Path):
    with np.load(golden / f"{name}.npz", allow_pickle=False) as file:
        z = {key: file[key] for key in file.files}
    tolerance = json.loads(str(z["meta"]))["recommended_tolerance"]
    names = ["q", "k", "v", "beta", "W0"] if op == "delta_rule" else ["q", "k", "v", "W0"]
    leaves = [torch.from_numpy(z[f"input/{n}"]).to(dtype) for n in names]
    # time before heads; the files keep a width of 1 for beta
    leaves = [x if n == "W0" else x.transpose(1, 2) for n, x in zip(names, leaves, strict=True)]
    leaves = [x[..., 0] if n == "beta" else x for n, x in zip(names, leaves, strict=True)]
    leaves = [x.requires_grad_() for x in leaves]
    with kernels.use(backend):
        y, last = OPS[op](*leaves)
    grad_out = torch.from_numpy(z["input/grad_out"]).to(dtype).transpose(1, 2)
    grads = dict(zip(names, torch.autograd.grad(y, leaves, grad_out), strict=True))

    # the files' tolerances are for float64 arithmetic; float32 keeps about seven digits
    least = {"out": 0.0, "grad": 0.0} if dtype == torch.float64 else {"out": 1e-5, "grad": 2e-5}
    tolerance = {key: max(tolerance[key], least[key]) for key in least}
    close(y.transpose(1, 2), z["out/out"], tolerance["out"], 1.0)
    close(last, z["out/W_final"], tolerance["out"], 1.0)
    largest = max(np.abs(z[f"grad/{n}"]).max() for n in names)
    for n, grad in grads.items():
        if n == "beta":
            grad = grad[..., None]
        grad = grad if n == "W0" else grad.transpose(1, 2)
        close(grad, z[f"grad/{n}"], tolerance["grad"], 1e-3 * largest)
