"""What several tasks share of models: heads, batches, likelihoods, generation; torch is imported inside."""
