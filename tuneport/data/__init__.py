"""From a user's rows to tokenised splits: readers, splits, copies, encoding; imports no torch."""
