"""How the processes of a stage come to be: one module = one launcher."""
