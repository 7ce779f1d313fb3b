"""captioned_shapes: images whose captions state all that is in them.

The data set is drawn, and a rule-based judge checks images against captions.
"""
