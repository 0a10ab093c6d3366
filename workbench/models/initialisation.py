"""How parameters begin, where PyTorch's own rules are not wanted: the rules of two code bases.

Paper: the codes of arXiv:1901.02860 (all weights) and arXiv:1708.02182 (the two ends).
"""

from __future__ import annotations

from torch import Tensor, nn

from workbench.models.vocabulary import Clusters, Projection


def initialise(
    model: nn.Module, std: float, limit: float | None = None, projection_std: float = 0.01
) -> None:
    """Transformer-XL's initialisation (its train.py `weights_init`), module by module.

    Args:
        model: its parameters are overwritten.
        std: of weights and embeddings, and of the gains of LayerNorms around 1.
        limit: weights and embeddings ~ U(-limit, limit) instead.
        projection_std: of the vocabulary's projections.
    """

    def draw(weight: Tensor) -> None:
        if limit is None:
            nn.init.normal_(weight, 0.0, std)
        else:
            nn.init.uniform_(weight, -limit, limit)

    for module in model.modules():
        if isinstance(module, Projection):
            nn.init.normal_(module.weight, 0.0, projection_std)
        elif isinstance(module, nn.Linear | nn.Embedding):
            draw(module.weight)
        elif isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, 1.0, std)
        if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for name, parameter in model.named_parameters():
        if name.endswith(("u_HK", "v_HK", "key_RHK", "code_RD")):
            draw(parameter)


def initialise_ends(vocabulary: nn.Module, reach: float) -> None:
    """AWD-LSTM's initialisation of what is looked up and of what becomes logits."""
    for module in vocabulary.modules():
        if isinstance(module, Clusters):
            nn.init.zeros_(module.weight)
        elif isinstance(module, nn.Embedding | nn.Linear):
            nn.init.uniform_(module.weight, -reach, reach)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
