"""Reports that compare runs: a table, files for papers and programs, and one HTML page.

Modules depend on each other in one direction: run, read, sequences, compare and seeds, columns, table, contents,
plots, then page and formats.
"""
