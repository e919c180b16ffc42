"""The document of a report: its parts (blocks.py), written as Markdown, LaTeX, CSV and text (formats.py) and as HTML
(page.py)."""
