"""Training and sweeps on a real Slurm, which is started for them and stopped after them."""
