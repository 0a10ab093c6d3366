"""Colours of HTML that stands beside figures: they follow the page that it is put into.

Values of CSS: the report's own variable if there is one, else that of JupyterLab, else that of
VS Code, else the light theme.
"""

from __future__ import annotations

INK = "var(--wb-ink, var(--jp-content-font-color1, var(--vscode-editor-foreground, #1F2933)))"
PAPER = "var(--wb-paper, var(--jp-layout-color0, var(--vscode-editor-background, #FFFFFF)))"
MUTED = (
    "var(--wb-muted, var(--jp-content-font-color2, var(--vscode-descriptionForeground, #52606D)))"
)
LINE = "var(--wb-line, var(--jp-border-color2, var(--vscode-panel-border, #E4E7EB)))"
MONO = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
