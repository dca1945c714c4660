"""Distributed strategies: FSDP2, and checks of the ones that are supported."""
