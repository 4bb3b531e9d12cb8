"""Training of the small embedded LLaVA: scenes, questions, tokenizer, trainer, export."""
