"""Which code is mutated, and by which tests its mutants must be noticed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Area:
    """Files to mutate, and the tests of which those that reach a mutant are run for it."""

    files: tuple[str, ...]
    tests: tuple[str, ...]


# `[!d]` leaves out `drift`, and `[!r]` `relevance`, which are areas of their own.
AREAS = {
    "api_keys": Area(("rewardserve/service/auth/api_keys.py",), ("tests/unit/service/auth/test_api_keys.py",)),
    "rate_limits": Area(
        ("rewardserve/service/auth/rate_limits.py", "rewardserve/service/auth/token_bucket.py"),
        (
            "tests/unit/service/auth/test_token_bucket.py",
            "tests/unit/service/auth/test_rate_limits.py",
            "tests/unit/service/api/middleware/test_auth.py",
        ),
    ),
    "request_limits": Area(
        (
            "rewardserve/service/api/middleware/body_limits.py",
            "rewardserve/service/api/body.py",
            "rewardserve/service/api/validation.py",
        ),
        (
            "tests/unit/service/api/middleware/test_body_limits.py",
            "tests/unit/service/api/test_body.py",
            "tests/unit/service/api/test_validation.py",
        ),
    ),
    "contract": Area(("rewardserve/model/contract.py",), ("tests/unit/model/test_contract_clauses.py",)),
    "encoding": Area(
        ("rewardserve/model/encoding.py", "rewardserve/model/tokenization/encoding_notes.py"),
        (
            "tests/unit/model/test_encoding_clauses.py",
            "tests/unit/model/test_encoding.py",
            "tests/unit/model/test_endings_in_part.py",
            "tests/unit/model/test_endings_that_vary.py",
        ),
    ),
    "policy": Area(
        ("rewardserve/model/tokenization/encoding_policy.py", "rewardserve/model/templates/llama_factory_slots.py"),
        ("tests/unit/model/test_encoding_policy.py", "tests/unit/model/test_llama_factory_slots.py"),
    ),
    "padding": Area(("rewardserve/model/padding.py",), ("tests/unit/model/test_padding.py",)),
    "losses": Area(
        ("rewardserve/training/objective/losses.py", "rewardserve/training/objective/feedback_loss.py"),
        ("tests/properties/test_losses.py", "tests/properties/test_feedback_losses.py"),
    ),
    "reward": Area(("rewardserve/model/reward/*.py",), ("tests/unit/model/test_reward_stages.py",)),
    "planner": Area(
        ("rewardserve/service/inference/planner.py",),
        ("tests/unit/service/inference/test_planner.py", "tests/properties/test_planner.py"),
    ),
    "tree": Area(
        ("rewardserve/model/backends/packed/tree.py",),
        ("tests/unit/model/packed/test_tree.py", "tests/properties/test_tree.py"),
    ),
    "tripwires": Area(
        ("rewardserve/service/tripwires/[!d]*.py",),
        ("tests/unit/service/tripwires",),
    ),
    "divergence": Area(
        ("rewardserve/service/tripwires/drift.py",),
        (
            "tests/unit/service/tripwires/test_drift_formulas.py",
            *(
                f"tests/unit/service/tripwires/test_drift.py::test_{name}"
                for name in (
                    "a_restart_bets_again_against_the_same_start",
                    "an_acknowledged_divergence_is_measured_on_later_prompts_alone",
                    "every_prompt_is_audited_where_a_divergence_is_suspected_up_to_a_bound",
                    "nothing_is_bet_before_the_start_of_the_run_is_known",
                    "numbers_without_a_difference_and_huge_ones_stay_finite",
                    "one_prompt_far_off_neither_ends_nor_makes_a_divergence",
                    "the_hypothesis_is_wider_where_scores_are_far_from_those_of_the_start",
                    "the_test_is_learning_until_it_knows_both_starts",
                    "the_wealth_is_the_mixture_over_the_windows_at_which_bets_begin",
                    "huge_scores_end_no_test",
                )
            ),
        ),
    ),
    "relevance": Area(
        ("rewardserve/service/tripwires/attribution/relevance.py",),
        (
            "tests/unit/service/tripwires/attribution/test_relevance_formulas.py",
            *(
                f"tests/unit/service/tripwires/attribution/test_relevance.py::test_{name}"
                for name in (
                    "a_collapse_that_is_paid_gives_both_statistics_and_its_sentence",
                    "half_of_the_pairs_are_matched_by_chance_and_all_where_responses_copy_their_prompts",
                    "nothing_can_be_lost_that_was_not_there",
                    "similarity_is_the_share_of_weighted_words_that_a_response_to_another_prompt_has",
                    "terms_are_stems_and_pairs_of_characters_without_spaces",
                    "the_lost_share_is_the_largest_that_three_standard_errors_leave",
                    "the_standard_error_is_the_jackknifes_and_has_a_floor",
                    "two_standard_errors_of_the_score_decide_between_warning_and_page",
                )
            ),
        ),
    ),
    "attribution": Area(
        ("rewardserve/service/tripwires/attribution/[!r]*.py",), ("tests/unit/service/tripwires/attribution",)
    ),
    "attribution_io": Area(
        tuple(
            f"rewardserve/service/tripwires/io/{name}.py"
            for name in (
                "attribution",
                "attribution_report",
                "run_texts",
                "edit_scorer",
                "edit_tests",
                "novelty_audits",
                "recent_audits",
                "length_audits",
            )
        ),
        tuple(
            f"tests/unit/service/tripwires/io/test_{name}.py"
            for name in ("attribution", "run_texts", "edit_scorer", "edit_tests", "novelty_audits")
        ),
    ),
    "client": Area(
        (
            "rewardserve_client/circuit_breaker.py",
            "rewardserve_client/request_plan.py",
            "rewardserve_client/backoff.py",
            "rewardserve_client/classify.py",
        ),
        tuple(
            f"tests/unit/client/test_{name}.py" for name in ("circuit_breaker", "request_plan", "backoff", "classify")
        ),
    ),
}
