"""The checkpoints that the adaptive-span paper's authors published (arXiv:1905.07799), by name.

Where they are is in the registry of published data; here is what each was trained by.
"""

from __future__ import annotations

from pathlib import Path

from workbench.config import nearest
from workbench.data import get, registry
from workbench.errors import ConfigError

# checkpoint: the recipe by which it was trained, and its figures were measured
CHECKPOINTS = {
    "adaptive-span-enwik8": "span-enwik8-base",
    "adaptive-span-text8": "span-text8-base",
    "adaptive-span-enwik8-large": "span-enwik8-large",
    "adaptive-span-text8-large": "span-text8-large",
}


def fetch(name: str, url: str | None = None) -> Path:
    """The file of a published checkpoint, downloaded at its first use.

    Args:
        name: a key of `CHECKPOINTS`.
        url: where the file is, or the folder (ending in `/`) with all four; the authors' host
            where nothing else is given.

    Raises:
        ConfigError: there is no such checkpoint.
        DataMissing: it is not there and cannot be downloaded; says which file to put where.
        DataError: it is not the file that was first used under this name.
    """
    if name not in CHECKPOINTS:
        raise ConfigError(
            f"there is no published checkpoint '{name}'. {nearest(name, [*CHECKPOINTS])}"
        )
    (file,) = registry.entry(name).contents
    return get(name, url=url).place / file
