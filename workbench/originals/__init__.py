"""The original programs' models in our terms: their arguments as configs, their names as ours.

One module a code base. Each has

    model_config(ctor) -> dict       our model config, for `load(ModelConfig, ...)`
    links(ctor) -> list[Link]        which original parameter is which of ours
    unused(ctor) -> set[str]         where there are some: parameters that their output ignores

`ctor` holds the original constructor's arguments as plain values. The parity tests use these with
recorded arrays, the importers with checkpoints: one mapping, proven by the former, serves both.
`reader` reads checkpoints; nothing else here touches a file.
"""
