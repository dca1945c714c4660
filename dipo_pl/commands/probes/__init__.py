"""Probes of finished runs, which try to recover what was forgotten: relearning and quantization attacks."""
