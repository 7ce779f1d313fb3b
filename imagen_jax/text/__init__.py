"""Text encoding: vocabulary, tokenizer and frozen text encoder."""
