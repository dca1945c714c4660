"""Reports: what runs found, side by side, as a table, as files for papers and as one page for people."""
