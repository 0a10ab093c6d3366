"""How much memory a run takes, and what to change when it is not enough."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from workbench.errors import OutOfMemory
from workbench.recipe import AnyRecipe, Recipe

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# how PyTorch's allocator for CPUs puts it, and cuBLAS
SIGNS = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def peak_bytes(device: torch.device) -> int:
    """The most memory held at once: on a GPU by tensors since the last call; on a CPU by the whole
    process since its start; 0 where the system does not tell."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, others kibibytes
    return peak if sys.platform == "darwin" else 1024 * peak


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there is no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(x in str(error) for x in SIGNS)


@contextmanager
def naming(cure: Callable[[], str]) -> Iterator[None]:
    """Inside, a lack of memory becomes an error that says what to change.

    Args:
        cure: makes that sentence.

    Raises:
        OutOfMemory: there was too little.
    """
    try:
        yield
        return
    except Exception as error:
        if not ran_out(error):
            raise
        said = str(error).strip().split("\n")[0]
        # what was computed so far would live as long as the error does
        traceback.clear_frames(error.__traceback__)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    raise OutOfMemory(f"{cure()}\n({said or 'the system has no memory left'})")


def smaller_update(recipe: AnyRecipe, world_size: int) -> str:
    """What makes an update need less memory, the next step first.

    Args:
        recipe: what is trained.
        world_size: processes that share each batch.
    """
    config, rows = recipe.train, recipe.data.batch_size // world_size
    pieces = next((n for n in range(config.micro_batches + 1, rows + 1) if rows % n == 0), None)
    same = []
    if pieces is not None:
        same.append(f"train.micro_batches: {pieces} (now {config.micro_batches})")
    if not config.recompute and not config.compile and isinstance(recipe, Recipe):
        same.append("train.recompute: true")
    changes = [f"a smaller data.batch_size (now {recipe.data.batch_size})"] if rows > 1 else []
    changes += ["train.precision: bf16"] if config.precision == "fp32" else []
    if isinstance(recipe, Recipe):
        changes.append(f"a smaller data.segment_len (now {recipe.data.segment_len})")
    text = f"out of memory in an update of {rows} rows in each process. "
    if same:
        text += f"Set {' or '.join(same)}, with which the same run folder continues. "
    return text + f"Otherwise, as a new run: {', or '.join(changes)}"


def smaller_validation(recipe: AnyRecipe) -> str:
    """What makes a validation need less memory."""
    if not isinstance(recipe, Recipe):
        return "out of memory in a validation. In a new run, set a smaller eval.max_queries"
    where = "eval" if recipe.train.valid is None else "train.valid"
    config = recipe.train.valid or recipe.eval
    return (
        f"out of memory in a validation. In a new run, set a smaller {where}.batch_size (now "
        f"{config.batch_size}) or {where}.segment_len (now {config.segment_len})"
    )
