"""captioned_shapes: drawn pictures whose captions state all that is in them."""
