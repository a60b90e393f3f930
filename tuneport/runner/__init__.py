"""Runs the stages of a pipeline on this machine: as processes, cached, one after another."""
