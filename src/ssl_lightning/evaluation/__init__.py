"""What pruning does to generalisation: calibration, corrupted images, transfer to other data.

The records need no torch; what measures is imported when it is first asked for.
"""

from typing import TYPE_CHECKING

from ssl_lightning import lazy

if TYPE_CHECKING:
    from ssl_lightning.evaluation.calibration import (
        Calibrated,
        against_dense,
        calibration_error,
        calibration_row,
        temperature,
    )
    from ssl_lightning.evaluation.calibration_record import CalibrationRecord
    from ssl_lightning.evaluation.corruption import Made, Stored, corrupted, wrong_on
    from ssl_lightning.evaluation.corruption_record import CORRUPTIONS, CorruptionRecord
    from ssl_lightning.evaluation.estimates import Estimate
    from ssl_lightning.evaluation.predictions import Predictions, predict
    from ssl_lightning.evaluation.transfer import (
        FineTuning,
        Labelled,
        features,
        fine_tuned,
        last_linear,
        linear_probe,
        logistic_regression,
    )
    from ssl_lightning.evaluation.transfer_record import TransferRecord

__all__ = [
    "CORRUPTIONS",
    "Calibrated",
    "CalibrationRecord",
    "CorruptionRecord",
    "Estimate",
    "FineTuning",
    "Labelled",
    "Made",
    "Predictions",
    "Stored",
    "TransferRecord",
    "against_dense",
    "calibration_error",
    "calibration_row",
    "corrupted",
    "features",
    "fine_tuned",
    "last_linear",
    "linear_probe",
    "logistic_regression",
    "predict",
    "temperature",
    "wrong_on",
]
__getattr__, __dir__ = lazy.attach(__name__)
