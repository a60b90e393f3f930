"""From a user's rows to tokenised splits: readers, splits, duplicates, encoding; imports no torch."""
