"""What the tests of a user's texts share: written, read back, refused."""

import pytest

from workbench.data.text import Text


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return str(path)


def joined(corpus):
    """The bytes of all splits."""
    return b"".join(corpus.text(split) for split in corpus.splits)


def refused(error, *parts, **fields):
    """A text is refused with a message that has these parts."""
    with pytest.raises(error) as caught:
        Text(**fields).open()
    for part in ("got", "expected", *parts):
        assert part in str(caught.value)
