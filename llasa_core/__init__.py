"""Llasa as a reproducible research repository: speech synthesis with a plain Llama.

Importing this package does no work and needs no model; each module imports what it owns.
"""

__version__ = "0.1.0"
