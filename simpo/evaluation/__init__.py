"""What is said about a model, and how sure that is: pure functions of scores, texts, judgements. No model, no HTTP."""
