"""Charts of the report: each a pure function from numbers to inline SVG.

Charts whose text would become too small on a phone are drawn twice, `wide` and `narrow`; the stylesheet shows one.
"""
