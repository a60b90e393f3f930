"""How an answer is scored: one module = one kind of answer; `evaluation/` compares and reports."""
