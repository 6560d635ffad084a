import subprocess
import sys

from semples_plugin.data.class_names import CLASS_NAMES
from semples_plugin.data.image_labels import read_class_names
from semples_plugin.presets import PRESETS


def test_every_preset_has_its_names_by_its_name():
    assert {name: preset.class_names for name, preset in PRESETS.items()} == CLASS_NAMES
    assert {name: len(read_class_names(name)) for name in CLASS_NAMES} == {
        "voc": 20, "coco": 80, "release-voc": 20, "release-coco": 90
    }  # fmt: skip


def test_names_come_without_torch():
    code = (
        "import sys; from semples_plugin.data.image_labels import read_class_names; read_class_names('coco');"
        "print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "semples_plugin.data.class_names" in loaded and not {"torch", "open_clip"} & set(loaded)
