"""Chat templates: rendering within a budget, and the slots of LLaMA-Factory's templates."""
