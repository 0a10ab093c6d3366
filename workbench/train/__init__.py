"""Training and measuring: the only place that knows optimizers, checkpoints and the clock.

`run.start` begins or continues a run, `evaluate.evaluate` measures a model, `folder.RunFolder`
reads what a run left behind. They are offered at the top as `workbench.start` and so on; nothing
is imported here, because a recipe needs `train.config` while `run` needs the recipe.
"""
