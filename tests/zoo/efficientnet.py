"""EfficientNet-Lite0: MobileNet-V2 with other stages. (Its real weights are in examples/efficientnet_lite0.py.)"""

from functools import partial

from zoo.mobilenet import MobileNetV2, NnxMobileNetV2, Stage

LITE0 = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 40, 2, 2, kernel=5),
    Stage(6, 80, 3, 2),
    Stage(6, 112, 3, 1, kernel=5),
    Stage(6, 192, 4, 2, kernel=5),
    Stage(6, 320, 1, 1),
)
EfficientNetLite0 = partial(MobileNetV2, LITE0)
NnxEfficientNetLite0 = partial(NnxMobileNetV2, stages=LITE0)
