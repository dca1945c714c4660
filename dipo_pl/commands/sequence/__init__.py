"""Continual unlearning: one run for each deletion request, with the earlier requests evaluated again."""
