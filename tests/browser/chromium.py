"""A headless Chromium that cannot leave this machine.

The system's own browser is driven; nothing is downloaded. Run as a script it says what is missing,
with exit status 77.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

PROGRAMS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
PACKAGES = "chromium fonts-dejavu-core fonts-liberation fontconfig"
"""Debian's names; a browser without fonts draws figures without words"""
MISSING = 77
SIZE = {"width": 1400, "height": 1000}

FLAGS = (
    "--no-sandbox",  # the sandbox refuses root, who runs the tests in a container
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--metrics-recording-only",
    "--disable-features=OptimizationHints,MediaRouter,Translate",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    # no name but this machine's resolves: what a page fetches from elsewhere fails, and is seen
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)


def find() -> str | None:
    """Path of the browser."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


def has_fonts() -> bool:
    """Whether there is any font to draw words with."""
    if not (lister := shutil.which("fc-list")):
        return False
    return bool(subprocess.run([lister], capture_output=True, check=True).stdout.strip())


def missing() -> str:
    """What keeps the browser from being started here; empty where nothing does."""
    lacking = ([] if find() else ["Chromium"]) + ([] if has_fonts() else ["fonts (fc-list)"])
    if not lacking:
        return ""
    return (
        f"{' and '.join(lacking)} missing: the browser tests were not run. "
        f"On Debian and Ubuntu: sudo apt install {PACKAGES}"
    )


@contextmanager
def chromium(profile: Path) -> Iterator[BrowserContext]:
    """A browser whose pages share one cache, so that JupyterLab is read from disk once.

    Args:
        profile: an empty folder for what the browser keeps.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(profile),
            executable_path=find(),
            headless=True,
            args=list(FLAGS),
            viewport=dict(SIZE),  # type: ignore[arg-type]
        )
        context.set_default_timeout(60_000)
        yield context
        context.close()


if __name__ == "__main__":
    if why := missing():
        sys.stderr.write(f"{why}\n")
        sys.exit(MISSING)
