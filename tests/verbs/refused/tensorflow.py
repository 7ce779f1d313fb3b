"""Stands before TensorFlow in the import path of the verbs that tests start."""

raise ImportError("tensorflow is refused: no verb may need it")
