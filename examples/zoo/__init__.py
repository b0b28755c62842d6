"""The zoo: real data and small trained networks that examples, benchmarks and tests share.

It is imported as ``de_plugin.zoo``. ``teacher("lenet5", "mnist")`` gives a trained network,
``mnist()`` and ``fashion_mnist()`` give the data, ``MODELS`` and ``DATA`` say what there is.
``darknet(cfg, weights)`` reads a detector; ``letterbox``, ``decode`` and ``detections`` go with it;
``read_photos`` reads what it looks at, ``Impressions`` makes more of that, and ``retention`` and
``missed`` compare what two detectors find.
``crepe()`` is a trained pitch tracker, and ``tones`` makes what it listens to.
``minilm()`` is a trained encoder of sentences; ``sentences()`` are some, and ``token_ids``
turns them into its inputs.
"""

if __name__ != "de_plugin.zoo":
    raise ImportError(
        f"the zoo was imported as {__name__!r}, expected 'de_plugin.zoo': install de_plugin and "
        "write 'from de_plugin.zoo import ...'"
    )

from .checkpoints import load_checkpoint
from .crepe import Crepe, crepe, found_pitch
from .darknet import Darknet, darknet
from .darknet_layers import Head
from .data import DATA, Dataset, fashion_mnist, mnist
from .detect import Detection, decode, detections, letterbox, nms
from .drawing import drawn, side_by_side
from .evaluation import accuracy
from .impressions import Impressions
from .minilm import MiniLM, minilm, token_ids
from .models import MODELS, lenet5, lenet300, mlpnet, resnet, vit
from .photos import FreshViews, Photos, mosaic, photo_files, read_photo, read_photos, varied
from .retention import Missed, Retention, missed, retention
from .sentences import Sentences, sentences
from .teachers import teacher
from .tones import Tones, tones

__all__ = [
    "DATA",
    "MODELS",
    "Crepe",
    "Darknet",
    "Dataset",
    "Detection",
    "FreshViews",
    "Head",
    "Impressions",
    "MiniLM",
    "Missed",
    "Photos",
    "Retention",
    "Sentences",
    "Tones",
    "accuracy",
    "crepe",
    "darknet",
    "decode",
    "detections",
    "drawn",
    "fashion_mnist",
    "found_pitch",
    "lenet5",
    "lenet300",
    "letterbox",
    "load_checkpoint",
    "minilm",
    "missed",
    "mlpnet",
    "mnist",
    "mosaic",
    "nms",
    "photo_files",
    "read_photo",
    "read_photos",
    "resnet",
    "retention",
    "sentences",
    "side_by_side",
    "teacher",
    "token_ids",
    "tones",
    "varied",
    "vit",
]
