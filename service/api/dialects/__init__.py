"""The wire formats of trainers and other servers, one file each; all of them are scored in the same way.

`DIALECTS` is the table. To add a format, add a file with a `Dialect`, the descriptions of its fields and an example reply, and a
line here.
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
    kserve.INFER_VERSION,  # before INFER, since the name of a model may have slashes
    kserve.INFER,
)

__all__ = ["DIALECTS", "Dialect"]
