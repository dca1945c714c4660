"""Files that a run writes and reads: run folder, checkpoints, shards, fingerprints."""
