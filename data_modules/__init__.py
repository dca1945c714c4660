"""Data modules: rows to forget and to retain, encoded, paired and batched, and the evaluation sets."""
