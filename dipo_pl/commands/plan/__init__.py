"""What a run will need before it is started: memory of a device, files, tokens and steps; no weights are loaded."""
