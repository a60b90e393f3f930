"""Runs that are kept, `runs/PIPELINE/NAME`: which folder a run gets, how it is found again, compared and removed."""
