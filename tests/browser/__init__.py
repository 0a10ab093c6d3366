"""The notebooks in a real JupyterLab, in a real browser: run by `make test-browser`."""
