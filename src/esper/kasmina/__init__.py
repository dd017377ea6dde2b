"""Growable model (Kasmina grows things).

Slots, seeds, gates, blending, isolation, blueprints, wrapping of any ``nn.Module``, export.
"""
