"""Commands that sign what a run has left and check it: nothing was changed since."""
