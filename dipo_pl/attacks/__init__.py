"""Attacks that try to bring out of a model what it was to forget, each beside the target and a model that never knew."""
