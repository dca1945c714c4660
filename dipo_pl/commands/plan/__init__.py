"""Estimate of what a run will need before it is started: memory, files, tokens and steps, without loading weights."""
