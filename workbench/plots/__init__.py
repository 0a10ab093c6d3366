"""Pictures of training, spans, attention, fast weights and evaluation, from plain numbers."""
