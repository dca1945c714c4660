"""Studies: many runs of several methods and seeds, carried out together and compared with intervals."""
