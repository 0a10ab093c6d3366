"""Runs that are killed, interrupted and denied space: what they cost, and that they go on."""
