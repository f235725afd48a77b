"""How good a model is: figures of its samples, of its likelihood and of its errors, with the floors to read them by."""
