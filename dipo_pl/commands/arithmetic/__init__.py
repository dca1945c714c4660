"""Model arithmetic: commands that combine the weights of two models."""
