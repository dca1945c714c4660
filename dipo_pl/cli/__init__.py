"""Command line: parsing of options and configs, runs of `fit` and `validate`, one-line errors and exit codes."""
