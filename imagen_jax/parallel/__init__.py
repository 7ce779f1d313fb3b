"""Devices and processes: meshes, shardings, and what their work costs."""
