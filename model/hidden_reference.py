"""Reference statistics of the hidden states of the calibration's responses, and the distance of a hidden state from them.

The file is stored in the checkpoint, beside the calibration that names it by its digest. Knows tensors and that one file;
`rewardserve.training.evaluation.hidden_statistics` fits it. Shapes: B rows, D hidden width, K directions.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save_file
from torch import Tensor

from rewardserve.model.calibration import Calibration, CalibrationError

FILE_NAME = "hidden_reference.safetensors"
_REMEDY = "Run `rewardserve calibrate` again, or delete the file: it changes no score."


@dataclass(frozen=True, slots=True, eq=False)
class HiddenReference:
    """Squared Mahalanobis distance of a hidden state h in K directions: D^2 = |whitening (h - mean)|^2. Float32."""

    mean_D: Tensor
    whitening_KD: Tensor

    def log_distance(self, hidden_BD: Tensor) -> Tensor:
        """log D^2 of each row, `(B,)` in float32. Always finite: a mere diagnostic must not fail a row."""
        mean_D = self.mean_D
        # In half precision the difference would be mostly rounding.
        white_BK = (hidden_BD.to(mean_D.device, torch.float32) - mean_D) @ self.whitening_KD.T
        number = torch.finfo(torch.float32)
        far = white_BK.square().sum(-1).nan_to_num(nan=number.max, posinf=number.max)
        return far.clamp_min(number.tiny).log()

    def to(self, device: str | torch.device) -> HiddenReference:
        """The same on another device."""
        return replace(self, mean_D=self.mean_D.to(device), whitening_KD=self.whitening_KD.to(device))

    @property
    def digest(self) -> str:
        """`sha256:...` of shapes and numbers; a calibration names its reference by it."""
        sha = hashlib.sha256()
        for tensor in (self.mean_D, self.whitening_KD):
            sha.update(str(tuple(tensor.shape)).encode() + tensor.cpu().numpy().tobytes())
        return "sha256:" + sha.hexdigest()

    def save(self, folder: Path, calibration: Calibration) -> None:
        """Write `hidden_reference.safetensors` into a checkpoint folder, with the digest of its data."""
        path = folder / FILE_NAME
        fitted_on = {"n": str(calibration.n), "data_digest": calibration.data_digest}
        save_file({"mean": self.mean_D, "whitening": self.whitening_KD}, path, metadata=fitted_on)
        path.chmod(0o644)  # safetensors writes files that only their owner can read


def load(folder: Path, calibration: Calibration | None, width: int) -> HiddenReference | None:
    """The reference of a checkpoint whose hidden states are `width` wide; None where there is no file.

    Raise `CalibrationError` where it is unreadable, or its digest is not the calibration's.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        stored = load_bytes(path.read_bytes())  # not mapped: the file may be overwritten or truncated
        reference = HiddenReference(stored["mean"].float(), stored["whitening"].float())
    except KeyError as error:
        raise CalibrationError(f"{FILE_NAME} has no tensor {error}. {_REMEDY}") from error
    except SafetensorError as error:
        raise CalibrationError(f"{FILE_NAME} is unreadable: {error}. {_REMEDY}") from error
    shapes = tuple(reference.mean_D.shape), tuple(reference.whitening_KD.shape[1:])
    if shapes != ((width,), (width,)):
        raise CalibrationError(f"{FILE_NAME} has shapes {shapes}, the hidden state is {width} wide. {_REMEDY}")
    if calibration is None or calibration.hidden_reference != reference.digest:
        raise CalibrationError(f"{FILE_NAME} is not the one that calibration.json was written with. {_REMEDY}")
    return reference
