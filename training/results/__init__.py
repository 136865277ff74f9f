"""The files of a finished run: checkpoint, report, model card."""
