"""Our model with the numbers of an original that was found in a file."""

from __future__ import annotations

import torch

from workbench.errors import UnknownOriginal
from workbench.models.feature_maps import Favor
from workbench.models.language_model import LanguageModel, ModelConfig
from workbench.originals.checkpoint import Original
from workbench.originals.links import load_parameters


def rebuild(original: Original, config: ModelConfig, name: str) -> LanguageModel:
    """Our model with the original's numbers.

    Args:
        original: as found.
        config: of our model; its parameters are those that the original links.
        name: of the file, for messages.

    Raises:
        UnknownOriginal, CheckpointError: its parameters or buffers are not what they should be.
    """
    left = original.buffers | original.aliases().keys()
    check_buffers(original)
    theirs = {n: x for n, x in original.tensors.items() if n not in left}
    with torch.device("meta"):
        wanted = sum(p.numel() for p in config.build(original.vocab_size).parameters())
    there = sum(x.numel() for x in theirs.values())
    # before any memory is taken for a model that the file cannot fill
    if wanted != there:
        raise UnknownOriginal(
            f"{name}: a model of these arguments has {wanted} parameters, the file has {there}"
        )
    model = config.build(original.vocab_size)
    load_parameters(model, original.links(), theirs, name)
    for layer, matrix_KM in original.projections.items():
        for favor in (m for m in model.layers[layer].mixer.modules() if isinstance(m, Favor)):
            buffer_KM = favor.get_buffer("projection_KM")
            if buffer_KM.shape != matrix_KM.shape:
                shapes = f"{tuple(matrix_KM.shape)}, expected {tuple(buffer_KM.shape)}"
                raise UnknownOriginal(f"{name}: layer {layer} projects features by {shapes}")
            buffer_KM.copy_(matrix_KM)
    return model.eval()


def check_buffers(original: Original) -> None:
    """Compare what a model computes again with what it must be.

    Raises:
        UnknownOriginal: it is another model than it says.
    """
    for name in sorted(original.buffers):
        value = original.tensors[name]
        n = value.numel()
        if name.endswith("inv_freq"):
            right = torch.tensor([10000 ** (-i / n) for i in range(n)])
        elif name.endswith("mask_template"):
            right = torch.arange(1.0 - n, 1.0)
        else:
            raise UnknownOriginal(f"the checkpoint has an unknown buffer '{name}'")
        tolerance = 4 * torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
        close = torch.allclose(value.float(), right, rtol=max(tolerance, 1e-5), atol=0.0)
        if value.dim() != 1 or not close:
            raise UnknownOriginal(f"the checkpoint's '{name}' is not what this model computes")
