"""What is learned from a batch: its loss, the noise it draws, and the samplers that walk back."""
