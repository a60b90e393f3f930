"""How texts become the token ids and labels that language models learn from; imports no torch."""
