"""Probes of finished runs: does what was forgotten come back by relearning, or by rounding the weights?"""
