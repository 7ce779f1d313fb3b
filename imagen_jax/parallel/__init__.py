"""Devices and processes: meshes, shardings and the cost of computing."""
