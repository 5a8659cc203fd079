"""What stages hand to each other: frozen dataclasses that save themselves and check themselves on load."""
