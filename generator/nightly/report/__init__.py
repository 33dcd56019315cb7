"""The night's report: one HTML file for the operator, of one size however many posters there are.

    write      the report rendered and stored; a report that fails loses no night
    fetch      a stored report as a file
    samples    what it reads of the tables: samples and extremes, never all rows
    nights     the funnel, and this night beside the last seven
    thumbs     pictures as small data URIs
    charts     small SVG charts, in the page's own colours

Imported by the night's `run` and `commands`.
"""
