"""One run: its parts, its loop, what each step sees, and what it leaves behind."""
