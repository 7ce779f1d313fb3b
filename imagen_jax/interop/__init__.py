"""Published weights to our parameters, and back."""
