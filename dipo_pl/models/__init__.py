"""Policies: where they come from, LoRA, hidden states, output head, generation, scores of answers."""
