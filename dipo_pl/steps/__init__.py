"""Step schemes: how the gradients of the forget loss and of the retain loss become the gradient of a training step."""
