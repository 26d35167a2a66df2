"""How far a candidate's predictions are from the reference's: KL, agreement, perplexity, by token and by block."""
