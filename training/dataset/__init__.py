"""From files of feedback to encoded sequences: read, check, count, hold out."""
