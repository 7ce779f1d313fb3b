"""Conversion between published weights and the parameters of our nets."""
