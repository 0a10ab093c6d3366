"""The model as a stack of slots: mixers, channel mixers, positions, vocabularies."""
