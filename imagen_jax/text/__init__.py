"""Prompts to embeddings: vocabulary, tokenizer and text encoder."""
