"""Runs that others start: jobs without a user, on this machine or on a cluster."""
