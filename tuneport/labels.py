"""What a label is, as transformers' losses take it."""

IGNORED = -100  # in a label's place: there is none, and nothing is learnt there
