"""The tuned model beside its base and the baselines: predictions, comparison, report."""
