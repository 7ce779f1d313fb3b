"""captioned_shapes: drawn images whose captions state their contents.

A rule-based judge checks images against captions.
"""
