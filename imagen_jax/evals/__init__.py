"""How good generated pictures are: the judge of captioned_shapes."""
