"""Accelerators that are not at hand: what a step compiled for them needs and how long it may take."""
