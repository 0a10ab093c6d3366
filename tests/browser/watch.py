"""What must never happen on a page: errors, calls to other machines, windows that open."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Dialog, Page, Request

HERE = ("127.0.0.1", "localhost")
LOCAL = ("data", "blob", "file", "about", "chrome-error")
"""kinds of addresses that need no network"""
# what JupyterLab itself says on its console, whatever the notebook
KNOWN: tuple[str, ...] = ()


def leaves(address: str) -> bool:
    """Whether a request for this address would go to another machine."""
    parts = urlsplit(address)
    return parts.scheme not in LOCAL and parts.hostname not in HERE


class Watch:
    """Listens to one page from its beginning; `faults` has all that must not be there."""

    def __init__(self, page: Page) -> None:
        self.faults: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.faults.append(f"page error: {error}"))
        page.on("request", self._request)
        page.on("websocket", lambda socket: self._address("websocket", socket.url))
        page.on("popup", lambda other: self.faults.append(f"opened a window: {other.url}"))
        page.on("dialog", self._dialog)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not any(known in message.text for known in KNOWN):
            self.faults.append(f"console: {message.text}")

    def _request(self, request: Request) -> None:
        self._address("request", request.url)

    def _address(self, what: str, address: str) -> None:
        if leaves(address):
            self.faults.append(f"{what} to another machine: {address}")

    def _dialog(self, dialog: Dialog) -> None:
        # JupyterLab asks before a page with unsaved work is left
        if dialog.type != "beforeunload":
            self.faults.append(f"{dialog.type}: {dialog.message}")
        dialog.accept()
