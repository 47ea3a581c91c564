"""Restoration: eight samplers on ten operators, with one prior."""
