"""What must never happen on a page: errors, calls to other machines, windows that open."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Dialog, Page, Request

HERE = ("127.0.0.1", "localhost")
LOCAL = ("data", "blob", "file", "about", "chrome-error")
"""kinds of addresses that need no network"""
GAVE_UP = "[anywidget] Failed to initialize model."
"""said of a widget whose page was busy for its first two seconds; `widgets/library.js` cares for
it, see `test_slow_page.py`"""
KNOWN = (GAVE_UP,)
"""what may be said on a page although nothing is wrong with it"""


def leaves(address: str) -> bool:
    """Whether a request for this address would go to another machine."""
    parts = urlsplit(address)
    return parts.scheme not in LOCAL and parts.hostname not in HERE


class Watch:
    """Listens to one page from its beginning; `faults` has all that must not be there, `known` what
    was said that may be."""

    def __init__(self, page: Page) -> None:
        self.faults: list[str] = []
        self.known: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self._error("page error", str(error)))
        page.on("request", self._request)
        page.on("websocket", lambda socket: self._address("websocket", socket.url))
        page.on("popup", lambda other: self.faults.append(f"opened a window: {other.url}"))
        page.on("dialog", self._dialog)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self._error("console", message.text)

    def _error(self, where: str, text: str) -> None:
        known = any(words in text for words in KNOWN)
        (self.known if known else self.faults).append(f"{where}: {text}")

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
