"""Model arithmetic: commands that make a model out of the weights of two."""
