"""Documents, for reports and plans: their parts (blocks.py), written as Markdown, LaTeX, CSV and text for the terminal
(formats.py), and as an HTML page (page.py)."""
