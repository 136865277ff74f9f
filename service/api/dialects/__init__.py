"""The wire formats of trainers and of other servers, one file each: every one translates to the same scoring.

`DIALECTS` is the table. A new one is a file with a `Dialect` in it, with the descriptions of its fields and an example reply, and
a line here.
"""

from rewardserve.service.api.dialects import kserve, llamafactory, nemo_gym, openai, openrlhf, pairs, slime, tei, vllm
from rewardserve.service.api.dialects.dialect import Dialect

DIALECTS: tuple[Dialect, ...] = (
    openrlhf.GET_REWARD,
    slime.SLIME,
    llamafactory.SCORE_EVALUATION,
    vllm.CLASSIFY,
    vllm.CLASSIFY_V1,
    vllm.POOLING,
    pairs.SCORE,
    *pairs.RERANKS,
    openai.EMBEDDINGS,
    tei.PREDICT,
    nemo_gym.VERIFY,
    kserve.INFER_VERSION,  # first: a name may hold slashes
    kserve.INFER,
)

__all__ = ["DIALECTS", "Dialect"]
