"""Code that the verbs share as commands: flags, exit codes, error sentences."""
