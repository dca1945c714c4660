"""The two ways a run ends early; the command line prints each as one line."""


class InputError(ValueError):
    """What the user gave cannot be used: the message names the thing, shows the value, says what to do."""


class TrainingError(RuntimeError):
    """Training cannot go on (a loss that is not finite, say); what was saved before stays whole."""
