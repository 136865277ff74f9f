"""Attribution: the features that grew in the responses of a run, the score that they earn, and edits that put them into others.

`growth.compare_with` compares recent samples with `tables.EarlyFeatures`, `sentences.report_sentences` writes the report, and
`effects` estimates the effect of an edit and the share of the growth of the score that it explains. Pure: no I/O, no clock,
no randomness. A finding is a correlation and never an alert by itself.
"""
