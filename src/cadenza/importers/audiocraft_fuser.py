"""AudioCraft's `fuser` as our fusion: the same slots by other names, in the order in which it fuses."""

from collections.abc import Mapping
from typing import Any

from cadenza.importers.section import ConfigReader

_STEPS = {"align": "steps", "resize": "nearest"}  # added to all steps of the sequence
_SLOTS: dict[str, tuple[str, Mapping[str, str]]] = {
    "cross": ("cross", {}),
    "prepend": ("prepend", {}),
    "sum": ("add", _STEPS),
    "input_interpolate": ("add", _STEPS),
    "ignore": ("ignore", {}),
}


def convert_fuser(fuser: ConfigReader, names: Mapping[str, str]) -> tuple[dict[str, list[Any]], float]:
    """Our fusion, and the scale of the sinusoids that are added to what is attended to (0 for none).

    `names` are the conditions in the order in which AudioCraft computes them (texts, sounds, joint ones), each with
    its id here. As there, a condition that several methods name goes by the last of them. Mistakes are noted in `fuser`.
    """
    method: dict[str, str] = {}
    for slot in fuser.unread_keys():
        if slot not in _SLOTS:
            continue
        for name in fuser.get(slot, (list, type(None)), None) or []:
            if name not in names:
                fuser.unsupported(slot, f"names '{name}', which is no conditioner; there are: {', '.join(names) or 'none'}")
            method[name] = slot
    fusion: dict[str, list[Any]] = {}
    for name, own in names.items():
        if name not in method:
            fuser.unsupported(name, "is a condition that no method fuses; name it in one, such as cross, or in ignore")
            continue
        slot, how = _SLOTS[method[name]]
        fusion.setdefault(slot, []).append({"id": own, **how} if how else own)
    fusion.get("prepend", []).reverse()  # each is put before those that are there already
    positions = fuser.get("cross_attention_pos_emb", (bool, type(None)), False)
    scale = fuser.get("cross_attention_pos_emb_scale", (float, int), 1.0)
    fuser.reject_unread()
    return fusion, float(scale) if positions else 0.0
