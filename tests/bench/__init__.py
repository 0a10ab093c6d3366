"""Ops and models against their peers, in one run: `make bench`, or `python -m bench` in `tests`.

A case is one computation at one size and every way to do it, ours and others'. All ways are checked
to give the same numbers, then take turns in one process, on random data, and are compared by their
medians. The limits of the machine are measured in the same run; figures of different runs are not
compared.
"""
