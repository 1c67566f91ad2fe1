"""References in YAML configs, as the manual of OmegaConf describes them."""

import pytest
import yaml

from cadenza.core.errors import CheckpointError
from cadenza.importers.audiocraft_package import InterpolatedConfig

TEXT = """
rate: 32000
name: music
seanet: {channels: "${channels}", ratios: [8, 5], first: "${.ratios.0}", again: "${seanet.ratios[1]}", up: "${..rate}"}
channels: "${two}"
two: 2
path: "/x/${name}_${rate}.bin"
whole: "${seanet}"
env: {user: "${oc.env:USER}", fine: 1}
later: "${env.user}"
lost: "${nowhere.at.all}"
empty: ???
a: "${b}"
b: "${a}"
loop: {inner: "${loop}"}
list: ["${two}", {x: "${name}"}]
"""
CONFIG = InterpolatedConfig(yaml.safe_load(TEXT), "cfg")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("channels", 2),
        ("seanet", {"channels": 2, "ratios": [8, 5], "first": 8, "again": 5, "up": 32000}),
        ("path", "/x/music_32000.bin"),
        ("whole", {"channels": 2, "ratios": [8, 5], "first": 8, "again": 5, "up": 32000}),
        ("list", [2, {"x": "music"}]),
    ],
)
def test_values(key, value):
    assert CONFIG[key] == value and type(CONFIG[key]) is type(value)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("env", r"cfg.env.user: calls '\$\{oc.env:USER\}', which is never run"),
        ("later", "never run"),
        ("lost", r"cfg.lost: refers to '\$\{nowhere.at.all\}', which does not exist"),
        ("empty", r"cfg.empty: has no value"),
        ("a", "refers to itself"),
        ("loop", "refers to itself"),
    ],
)
def test_unresolvable_references_are_named(key, message):
    with pytest.raises(CheckpointError, match=message):
        CONFIG[key]


def test_only_requested_keys_are_resolved():
    assert CONFIG.get("rate") == 32000 and "env" in CONFIG and CONFIG.get("nothing", 7) == 7
