"""Deletion requests that follow one another: a run for each, and what becomes of those before."""
