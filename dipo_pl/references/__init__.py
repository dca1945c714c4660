"""References that losses compare the policy with: a frozen copy, the adapter switched off, stored states."""
