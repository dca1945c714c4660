"""Callbacks of a run: evaluation, checkpoint selection, checkpoints, export, manifest, monitoring."""
