"""Integrations with training frameworks (stacks): growth as a callback of theirs. Each needs its extra.

``esper.stacks.lightning``: a ``Callback`` for Lightning's ``Trainer``. ``esper.stacks.transformers``: a
``TrainerCallback`` for Hugging Face's ``Trainer``. Accelerate needs none: :class:`esper.Grower` takes what it prepared.
"""
