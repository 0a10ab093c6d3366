"""Operations with several implementations, and the choice between them.

`attention`, `clustered_cross_entropy`, `delta_rule`, `dpfp`, `dropout`, `forget_mult`, `fo_pool`,
`linear_cross_entropy` and `sum_rule` are called like functions. `prepare` builds what this machine
can run faster; without it, or without a compiler, everything runs on PyTorch alone.
"""

from workbench.errors import NoBackend
from workbench.kernels.attention_gpu import attention
from workbench.kernels.build import BuildReport, prepare
from workbench.kernels.clustered_cross_entropy import clustered_cross_entropy
from workbench.kernels.delta_rule import delta_rule, delta_step, read
from workbench.kernels.dispatch import Account, explain, forget, in_float32, ran, use
from workbench.kernels.dpfp import dpfp
from workbench.kernels.dropout import dropout
from workbench.kernels.forget_mult import fo_pool, forget_mult
from workbench.kernels.linear_cross_entropy import linear_cross_entropy
from workbench.kernels.sum_rule import sum_rule

__all__ = [
    "Account",
    "BuildReport",
    "NoBackend",
    "attention",
    "clustered_cross_entropy",
    "delta_rule",
    "delta_step",
    "dpfp",
    "dropout",
    "explain",
    "fo_pool",
    "forget",
    "forget_mult",
    "in_float32",
    "linear_cross_entropy",
    "prepare",
    "ran",
    "read",
    "sum_rule",
    "use",
]
