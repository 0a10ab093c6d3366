"""Trains recipes of `law_cases` one after another, in float64: `OUT [PATH=VALUE] NAME...`

Alone or under `torchrun`. What a run folder holds in the end is what is compared; that all
processes end with the same weights, bit for bit, is checked here.
"""

import hashlib
import sys
from pathlib import Path

import torch
from law_cases import cases

import workbench
from workbench.train.__main__ import overrides_of
from workbench.train.run import Run


def fingerprint(run: Run) -> torch.Tensor:
    """(32,) bytes that tell weights and the optimizer's sums apart."""
    sums = [x for state in run._trainer.optimizer.state.values() for x in state.values()]
    digest = hashlib.sha256()
    for value in [*run.model.state_dict().values(), *sums]:
        if isinstance(value, torch.Tensor):
            digest.update(value.contiguous().numpy().tobytes())
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def main(out: str, *words: str) -> None:
    """Train each recipe into a folder of its name."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    overrides = overrides_of([word for word in words if "=" in word])
    known = cases()
    for name in (word for word in words if "=" not in word):
        run = workbench.start(known[name], overrides, Path(out) / name)
        for _ in run:
            pass
        prints = run._world.gather(fingerprint(run))
        if any(not torch.equal(x, prints[0]) for x in prints):
            sys.exit(f"{name}: the processes ended with different weights")


if __name__ == "__main__":
    main(*sys.argv[1:])
