"""What an alert means, how sure it is, and what to do: for alert annotations and whoever reads `GET /tripwires`. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from rewardserve.service.tripwires.wire import CANARY, VOTE


@dataclass(frozen=True, slots=True)
class Advice:
    """`sure`: how far to trust the alert. `do`: the first thing to do."""

    sure: str
    do: str


_READ = "Read twenty of the latest responses of the run beside twenty of its first step."


def _gym(hacked: int, healthy: int = 0) -> str:
    """How many runs of docs/explanation/gym.md had this alert: of the hacked ones, those before the fall."""
    return f"In the gym before the fall in {hacked} of 123 hacked runs, and in {healthy or 'none'} of 17 healthy ones."


ADVICE = MappingProxyType(
    {
        VOTE: Advice(
            "In the gym it paged before the true reward fell in 135 of 136 hacked runs, and in none of 21 healthy ones; also in "
            "nearly half of the mild runs whose true reward still rose. It says that exploited features grow.",
            "Keep the last checkpoint of the policy, read its latest responses, and raise the KL penalty or stop the run.",
        ),
        CANARY: Advice(
            "Certain: the same texts have other scores than at start, beyond the noise of the dtype.",
            "Stop every run that this replica scores, restart it from the checkpoint, and find who or what changed the weights.",
        ),
        "score_shift": Advice(
            "It says nothing by itself: it tripped in 14 of 17 healthy runs of the gym too.",
            "Look at it beside the audit gap and the other wires.",
        ),
        "distance": Advice(
            "Weak, and not measured in the gym: hidden states of healthy runs leave those of the calibration too.",
            "Look at it beside the other wires.",
        ),
        "saturation": Advice(
            _gym(102),
            "Compare with the audit gap; " + _READ.lower(),
        ),
        "capped": Advice(
            "Certain: it is counted.",
            "Most rewards no longer differ, so nothing is learnt from them. Look at what the capped responses have in common.",
        ),
        "flat_groups": Advice(
            "Certain: it is counted.",
            "GRPO and RLOO learn nothing from such groups. Look for caps, for identical responses, for prompts that are too easy.",
        ),
        "length_high": Advice(
            "Half sure: honest learning may lengthen responses. " + _gym(118),
            "Look at reward against length; set an overlong penalty, or debias, and watch that length_low stays quiet.",
        ),
        "length_low": Advice(
            "Half sure.", "Look whether short responses still answer; look at debias and length penalties."
        ),
        "missing_end": Advice(
            "Certain that responses are cut off; why is to be seen.",
            "Compare with the token limit of the policy; set the penalty for a missing end.",
        ),
        "repetition": Advice(_gym(96), _READ),
        "refusal": Advice(
            "As sure as its phrases are for your language.", "Look whether the refused prompts are to be refused."
        ),
        "flattery": Advice("As sure as its phrases are for your language.", _READ),
        "markup": Advice("Half sure: a task may ask for lists.", _READ),
        "judge_injection": Advice(
            "Sure: honest responses do not speak to whoever scores them.",
            "Stop the run. Add such responses, rejected, to the training data of the reward model.",
        ),
        "empty_opener": Advice(
            "Sure that nothing follows.", "Add such responses, rejected, to the training data of the reward model."
        ),
        "control_tokens": Advice(
            "Sure that the tokens are there; they cannot forge a turn here, but may do so elsewhere.",
            "Look whether the policy's template and stop tokens are right, then whether it is paid for them.",
        ),
        "foreign_script": Advice("Sure that letters change; a prompt may have asked for it.", _READ),
        "duplicate_within_prompt": Advice(
            "Certain: it is counted.", "Look at the temperature of the policy, and whether it has collapsed."
        ),
        "duplicate_across_prompts": Advice(
            "Certain: it is counted.", "The policy has found a text that pays everywhere. Stop the run and read it."
        ),
        "probing": Advice(
            "Certain: it is counted.",
            "Somebody, or something, tries one text over and over. Find out which client it is.",
        ),
        "id_reuse": Advice(
            "Sure that ids are used twice within a step.",
            "Find out whether the trainer's numbering is at fault, or somebody sends under its ids.",
        ),
        "spread": Advice(
            "Late. " + _gym(68),
            "The members disagree more than on usual responses: look where.",
        ),
        "component_share": Advice(
            "Certain that the shares have changed; why is to be seen.",
            "Look at the share of each part on the dashboard: one of them has become what is learnt.",
        ),
        "audit_gap": Advice(
            _gym(82, 2) + " There the judge was trained on other labels than the model.",
            "Compare twenty responses that the two judge differently.",
        ),
        "divergence": Advice(
            "Both trends are far beyond chance. " + _gym(55),
            "Stop the run, and go back to the checkpoint from before the audit judge's score fell.",
        ),
        "honeypots": Advice(
            "As sure as the bait is: no honest response does what was planted.",
            "The policy exploits on purpose what it can. Stop the run; look at the responses to the planted prompts first.",
        ),
        "kl": Advice(
            "Known only for the gym, whose threshold this is; measure yours.",
            "Compare the rewards with a judge of your own at this distance; raise the KL penalty.",
        ),
    }
)
"""By wire. Every wire has its own. Figures of the gym are those of docs/explanation/gym.md."""

SAYS = MappingProxyType(
    {
        VOTE: "several wires together: exploited features grow",
        CANARY: "the same model gives the same texts other scores",
    }
)
"""What the two alerts say that are no wires of the table."""
