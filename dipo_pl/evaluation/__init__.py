"""What an evaluation finds: its conventions, its result on disk, and results of other projects."""
