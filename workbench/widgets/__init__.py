"""Views that live in a browser, each a small class composed of figures from `workbench.plots`."""
