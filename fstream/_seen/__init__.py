"""Shows: the numbers of a stream, and the stage that holds it back."""
