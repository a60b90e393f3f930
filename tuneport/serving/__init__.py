"""What is exported, as text, into a served model; one module = one class or a few that belong together.

The law: a class imports what it needs inside its methods and uses no other module-level name than exported classes.
"""
