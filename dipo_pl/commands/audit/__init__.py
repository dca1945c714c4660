"""The command that attacks an unlearned model beside its target and a model that never knew."""
