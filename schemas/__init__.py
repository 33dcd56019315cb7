"""What crosses a boundary between parts, as types: events, tables, the manifest, settings, errors.

Every other part may import this one; it imports none of them.
"""
