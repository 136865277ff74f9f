"""The documentation: pages in Markdown, and the reference that is generated from the code."""
