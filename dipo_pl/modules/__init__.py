"""LightningModules: unlearning and fine-tuning."""
