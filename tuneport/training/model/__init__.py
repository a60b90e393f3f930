"""What is done to a loaded model before it is trained, and to what is saved beside it."""
