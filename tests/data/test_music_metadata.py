"""Music metadata: typed, and mixed into texts by chance that belongs to the draw."""

import math
from collections import Counter
from itertools import permutations
from typing import Any

import pytest

from cadenza.core.errors import SpecError
from cadenza.data.items import SampleIndex, SegmentInfo, compose, sample_rng
from cadenza.data.music_metadata import PromptMixer, clean_metadata

FULL = {
    "title": "Night  Train ", "artist": "None", "key": "A minor", "bpm": "120", "genre": " Jazz", "moods": ["Calm", "calm", ""],
    "keywords": "Brass, Late Night", "description": "A slow piano.", "name": "solo", "instrument": "Piano",
}  # fmt: skip


def segment(rng=None):
    return SegmentInfo("a", "a.wav", 0.0, 1.0, rng, lambda: pytest.fail("nothing here needs the sound"))


def drawn(spec, count, item=FULL):
    return [spec(dict(item), segment(sample_rng(0, SampleIndex(i)))) for i in range(count)]


def test_every_field_gets_its_type_or_is_absent():
    assert clean_metadata({**FULL, "tempo": 3}) == {
        "title": "Night Train", "key": "A minor", "bpm": 120.0, "genre": "jazz", "moods": ["calm"],
        "keywords": ["brass", "late night"], "description": "A slow piano.", "name": "solo", "instrument": "piano",
        "tempo": 3, "prompt": "A slow piano.",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("key", "C major, A minor"), ("key", 5), ("bpm", "fast"), ("bpm", math.nan), ("bpm", 0), ("bpm", -3), ("bpm", True),
        ("bpm", math.inf), ("bpm", [1]), ("genre", "None"), ("genre", 3), ("moods", math.nan), ("moods", []), ("moods", "N/A"),
        ("description", " "), ("title", None), ("keywords", {"a": 1}),
    ],
)  # fmt: skip
def test_what_is_no_value_is_absent(field, value):
    assert clean_metadata({field: value}) == {}


def test_a_prompt_of_its_own_stays():
    assert clean_metadata({"prompt": "mine", "description": "theirs"})["prompt"] == "mine"
    assert clean_metadata({"prompt": "", "description": ["one", "two", ""]})["prompt"] == ["one", "two"]


def test_probabilities_are_what_they_say():
    spec = PromptMixer(merge=0.4, drop_description=0.3, keep_field=0.6)
    prompts = [item.get("prompt") for item in drawn(spec, 6000)]
    same = sum(prompt == "A slow piano." for prompt in prompts) / 6000
    none_kept = 0.4**6
    assert same == pytest.approx(0.6 + 0.4 * 0.7 * none_kept, abs=0.02)  # not merged, or nothing was kept to merge
    assert sum(prompt is None for prompt in prompts) / 6000 == pytest.approx(0.4 * 0.3 * none_kept, abs=0.005)
    merged = [prompt for prompt in prompts if prompt and ": " in prompt]
    assert sum(not prompt.startswith("A slow piano. ") for prompt in merged) / len(merged) == pytest.approx(0.3, abs=0.03)
    for said in ("key: A minor", "bpm: 120", "genre: jazz", "moods: calm", "instrument: piano", "keywords: brass, late night"):
        assert sum(said in prompt for prompt in merged) / len(merged) == pytest.approx(0.6, abs=0.03)
    assert not any("title" in prompt or "name:" in prompt for prompt in merged)
    orders = Counter(prompt for prompt in merged if prompt.count(": ") == 6)
    assert len(orders) > 100  # 720 orders, with and without the description


def test_audiocrafts_zero_keeps_no_field():
    assert {item.get("prompt") for item in drawn(PromptMixer(merge=1, drop_description=0, keep_field=0), 50)} == {
        "A slow piano."
    }


def test_texts_to_the_letter_are_those_of_audiocraft():
    """What its code makes of these fields: `str` of a float, a key in lower case, a full stop in any case."""
    item = {**FULL, "description": "A slow piano", "bpm": "120.5"}
    exact = {"exact": True, "drop_description": 0, "keep_field": 1}
    only = {name: item[name] for name in ("description", "key", "bpm", "moods")}
    told = {x["prompt"] for x in drawn(PromptMixer(merge=1, **exact), 60, only)}
    pairs = ["key: a minor", "bpm: 120.5", "moods: calm"]
    assert told == {". ".join(["A slow piano", *order]) for order in permutations(pairs)}
    whole = {**only, "bpm": 120}
    assert any("bpm: 120.0" in x["prompt"] for x in drawn(PromptMixer(merge=1, **exact), 3, whole))
    assert {x["prompt"] for x in drawn(PromptMixer(merge=1e-9, **exact), 5, only)} == {"A slow piano."}
    assert {x["prompt"] for x in drawn(PromptMixer(merge=0, **exact), 5, only)} == {"A slow piano"}
    kept = PromptMixer(merge=1, exact=True, drop_description=0, keep_field=0)
    assert {x["prompt"] for x in drawn(kept, 5, only)} == {"A slow piano."}
    assert drawn(PromptMixer(merge=1, **exact), 1, only)[0]["key"] == "A minor", "the condition is what it was"


def test_fields_are_dropped_as_conditions_too():
    items = drawn(PromptMixer(merge=0, drop={"key": 0.5, "description": 0.25}), 2000)
    assert sum("key" in item for item in items) / 2000 == pytest.approx(0.5, abs=0.04)
    assert sum("prompt" in item for item in items) / 2000 == pytest.approx(0.75, abs=0.04)
    assert all("bpm" in item for item in items)


def test_the_same_draw_gives_the_same_text():
    spec = PromptMixer(merge=1)
    assert drawn(spec, 40) == drawn(PromptMixer.parse(spec.to_dict()), 40) and len({str(item) for item in drawn(spec, 40)}) > 30
    assert spec(dict(FULL), segment())["prompt"] == "A slow piano."
    without = {key: value for key, value in FULL.items() if key in ("genre", "bpm")}
    assert spec(without, segment())["prompt"] == "bpm: 120. genre: jazz"
    with pytest.raises(SpecError, match="merge"):
        PromptMixer.parse({"merge": 2})


def test_functions_compose():
    both: Any = compose(PromptMixer(merge=0), None, lambda item, _: {**item, "prompt": item["prompt"].upper()})
    assert both(dict(FULL), segment())["prompt"] == "A SLOW PIANO." and compose(None) is None
    seen = []
    stop: Any = compose(lambda item, _: None, lambda item, _: seen.append(item))
    assert stop({}, segment()) is None and not seen
