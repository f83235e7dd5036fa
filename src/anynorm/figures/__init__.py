"""The picture of a normalization, which cells share one mean and variance, drawn from its sentence.

`words` reads a line, `cells` lays it out on a cube, `draw` and `text` show cubes, `curves` shows what training did, and
`save` writes files.
"""
