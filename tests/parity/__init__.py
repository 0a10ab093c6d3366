"""Parity: our models against arrays that the papers' own code produced."""
