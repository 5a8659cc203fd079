"""Makes the modules of this folder (`families`) importable by every test."""
