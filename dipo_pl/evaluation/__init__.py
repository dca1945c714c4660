"""Results to compare with: retain-only models', published ones, and those in the formats of other projects."""
