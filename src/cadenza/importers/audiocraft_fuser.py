"""AudioCraft's `fuser` as our fusion: the same slots by other names, in the order in which it fuses."""

from collections.abc import Mapping
from typing import Any

from cadenza.importers.section import Section

_STEPS = {"align": "steps", "resize": "nearest"}  # added to all steps of the sequence
_SLOTS: dict[str, tuple[str, Mapping[str, str]]] = {
    "cross": ("cross", {}),
    "prepend": ("prepend", {}),
    "sum": ("add", _STEPS),
    "input_interpolate": ("add", _STEPS),
    "ignore": ("ignore", {}),
}


def fusion_of(fuser: Section, names: Mapping[str, str]) -> tuple[dict[str, list[Any]], float]:
    """Our fusion, and the scale of the sinusoids that are added to what is attended to (0 for none).

    `names` are the conditions in the order in which AudioCraft computes them (texts, sounds, joint ones), each with
    its id here. As there, a condition that several methods name goes by the last of them. Mistakes are noted in `fuser`.
    """
    method: dict[str, str] = {}
    for slot in fuser.left():
        if slot not in _SLOTS:
            continue
        for name in fuser.take(slot, (list, type(None)), None) or []:
            if name not in names:
                fuser.refuse(slot, f"names '{name}', which is no conditioner; there are: {', '.join(names) or 'none'}")
            method[name] = slot
    fusion: dict[str, list[Any]] = {}
    for name, own in names.items():
        if name not in method:
            fuser.refuse(name, "is a condition that no method fuses; name it in one, such as cross, or in ignore")
            continue
        slot, how = _SLOTS[method[name]]
        fusion.setdefault(slot, []).append({"id": own, **how} if how else own)
    fusion.get("prepend", []).reverse()  # each is put before those that are there already
    positions = fuser.take("cross_attention_pos_emb", (bool, type(None)), False)
    scale = fuser.take("cross_attention_pos_emb_scale", (float, int), 1.0)
    fuser.all_seen()
    return fusion, float(scale) if positions else 0.0
