"""Export of systems in the layout of transformers: a MusicGen with its codec, T5 and chroma, or an EnCodec."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from cadenza.core.checkpoint import save_shards, strip_prefix
from cadenza.core.errors import CheckpointError
from cadenza.importers import encodec
from cadenza.importers.base import musicgen_key_map
from cadenza.nn.patterns import Delay
from cadenza.system.store import write_folder
from cadenza.system.system import System

SHARD_BYTES = 4 * 2**30
Parts = tuple[dict[str, Any], dict[str, str | bytes], list[str]]  # config, other files, notes
_TOKENIZER = ("tokenizer.json", "spiece.model", "tokenizer_config.json", "special_tokens_map.json")


def export(system: System, folder: Path) -> list[str]:
    """Write the whole folder or nothing; return notes, one line each.

    Raise CheckpointError with everything in the system that the layout does not support.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not empty; choose a new folder")
    config, files, notes = _codec_files(system) if system.generator is None else _musicgen_files(system)
    weights = dict(_weights(system))
    with write_folder(folder) as temporary:
        for name, content in {"config.json": _text(config), "README.md": _card(system), **files}.items():
            (temporary / name).write_bytes(content.encode() if isinstance(content, str) else content)
        shards = save_shards(weights, temporary, max_bytes=SHARD_BYTES, metadata={"format": "pt"})
        if len(set(shards.values())) > 1:
            index = {"metadata": {"total_size": sum(x.nbytes for x in weights.values())}, "weight_map": shards}
            (temporary / "model.safetensors.index.json").write_text(_text(index))
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    return [
        f"{folder}: {config['architectures'][0]} of transformers, {size:.1f} MiB",
        f"licence: {system.card.license}",
        *notes,
    ]


def _codec_files(system: System) -> Parts:
    spec: Any = system.spec.codec
    config = encodec.config_to_transformers(spec)
    return config, {"preprocessor_config.json": _text(encodec.feature_extractor_config(spec))}, []


def _musicgen_files(system: System) -> Parts:
    generator: Any = system.spec.generator
    _refuse(system)
    mono = _mono(system)
    melody = _named(system, "chroma")
    kind, architecture = ("musicgen_melody", "MusicgenMelody") if melody else ("musicgen", "Musicgen")
    t5: Any = system.conditioners[_named(system, "t5")]
    sides, bins = system.spec.codec.channels, mono.frame_format.cardinality
    decoder = {
        "model_type": f"{kind}_decoder",
        "vocab_size": bins,
        "max_position_embeddings": max(2048, generator.max_frames + system.spec.codec.frame_format.channels),
        "num_hidden_layers": generator.depth,
        "ffn_dim": round(generator.width * generator.mlp_ratio),
        "num_attention_heads": generator.heads,
        "activation_function": "gelu",
        "hidden_size": generator.width,
        "dropout": generator.dropout,
        "num_codebooks": system.spec.codec.frame_format.channels,
        "audio_channels": sides,
        "pad_token_id": bins,
        "bos_token_id": bins,
        "eos_token_id": None,
        "scale_embedding": False,
        "tie_word_embeddings": False,
    }
    config = {
        "architectures": [f"{architecture}ForConditionalGeneration"],
        "model_type": kind,
        "is_encoder_decoder": True,
        "text_encoder": t5.pretrained.config,
        "audio_encoder": encodec.config_to_transformers(mono),
        "decoder": decoder,
    }
    extractor = {**encodec.feature_extractor_config(mono), "feature_size": sides}
    notes: list[str] = []
    if melody:
        chroma: Any = system.spec.conditioners[melody]
        config |= {"num_chroma": chroma.bins, "chroma_length": chroma.max_frames}
        extractor = _chroma_extractor_config(chroma)
        if chroma.stems is not None:
            stems = "+".join(chroma.stems)
            notes.append(f"note: transformers does not separate stems; for {stems}, give its processor the output of Demucs")
        if chroma.seconds != _chroma_seconds(chroma):
            notes.append(f"note: transformers cuts a melody to {_chroma_seconds(chroma)} s")
        if chroma.pad_to == "own":
            notes.append("note: in a batch transformers pads melodies with silence to the longest; single melodies agree")
    files: dict[str, str | bytes] = {
        "generation_config.json": _text(_generation(system, bins)),
        "preprocessor_config.json": _text({**extractor, "processor_class": f"{architecture}Processor"}),
    }
    _ = t5.pretrained.tokenizer  # raises CheckpointError if it is incomplete
    for file in _TOKENIZER:
        if path := t5.pretrained.source.optional_file(file):
            files[file] = path.read_bytes()
    files.setdefault("tokenizer_config.json", _text({"tokenizer_class": "T5Tokenizer"}))
    if generator.attend_padding == (melody is None):
        theirs, ours = ("masks", "attends to") if generator.attend_padding else ("attends to", "masks")
        notes.append(f"note: transformers {theirs} the padding of texts in a batch, this model {ours} it; single texts agree")
    if t5.spec.max_length is not None:
        notes.append(f"note: transformers does not cut texts to {t5.spec.max_length} tokens")
    return config, files, notes


def _refuse(system: System) -> None:
    """Raise CheckpointError with every setting that transformers' MusicGen does not support."""
    spec, generator = system.spec, system.spec.generator
    if generator.type != "codec_lm":  # type: ignore[union-attr]
        raise CheckpointError(f"generator: '{generator.type}' has no layout in transformers; only codec_lm has")  # type: ignore[union-attr]
    g: Any = generator
    sides = spec.codec.channels
    straight = tuple(k // sides for k in range(spec.codec.frame_format.channels))
    delays = (g.pattern.delays or tuple(range(spec.codec.frame_format.channels))) if isinstance(g.pattern, Delay) else None
    types = {name: part.type for name, part in spec.conditioners.items()}  # type: ignore[attr-defined]
    texts = [name for name, kind in types.items() if kind == "t5"]
    melodies = [name for name, kind in types.items() if kind == "chroma"]
    slot = "prepend" if melodies else "cross"
    routes = [route.id for route in getattr(spec.fusion, slot)]
    problems = {
        "codec: must be an encodec, or a stereo of one": _mono(system).type != "encodec",
        f"generator.positions: '{g.positions}'; transformers has sinusoidal": g.positions != "sinusoidal",
        "generator.end_of_sequence: transformers has no end token for codes": g.end_of_sequence,
        "generator.cross_attention_pos_emb_scale: transformers has no such positions": g.cross_attention_pos_emb_scale,
        "generator.bias: layers of transformers have none": g.bias,
        f"generator.norm_eps: {g.norm_eps:g}; transformers has 1e-05": g.norm_eps != 1e-5,
        f"generator.pattern: must be a delay of {straight}": delays != straight
        or g.pattern.flatten_first
        or g.pattern.empty_initial,
        f"conditioners: must be one t5, and one chroma at most, got: {', '.join(types) or 'none'}": len(texts) != 1
        or len(melodies) > 1
        or len(types) != len(texts) + len(melodies),
        f"fusion: only `{slot}` is supported": set(spec.fusion.routes_by_slot()) != {slot},
        f"fusion.prepend: must be the chroma and then the t5, not {routes}": bool(melodies) and routes != [*melodies, *texts],
    }
    projection = "project: transformers has a projection only if the model is not as wide as the"
    for name in melodies:
        chroma: Any = spec.conditioners[name]
        problems |= {
            f"conditioners.{name}.max_frames: must be given, as transformers cuts or repeats the audio": chroma.max_frames
            is None,
            f"conditioners.{name}.pad_mode: '{chroma.pad_mode}'; transformers repeats short audio": chroma.pad_mode != "repeat",
            f"conditioners.{name}.one_hot: transformers uses only the strongest pitch class": not chroma.one_hot,
            f"conditioners.{name}.null_embedding: '{chroma.null_embedding}'; transformers uses silence": chroma.null_embedding
            != "silence",
            f"conditioners.{name}.{projection} number of pitch classes": chroma.bins == chroma.output_dim
            and chroma.project == "always",
        }
    for name in texts:
        t5: Any = spec.conditioners[name]
        dim = system.conditioners[name].pretrained.dim  # type: ignore[union-attr]
        problems |= {
            f"conditioners.{name}.null_embedding: '{t5.null_embedding}'; transformers uses zeros": t5.null_embedding != "zeros",
            f"conditioners.{name}.normalize_text: transformers does not normalize texts": t5.normalize_text,
            f"conditioners.{name}.{projection} T5": dim == t5.output_dim and t5.project == "always",
        }
    if unsupported := [problem for problem, applies in problems.items() if applies]:
        raise CheckpointError("this model cannot be a MusicGen of transformers:\n  " + "\n  ".join(unsupported))


def _weights(system: System) -> Iterator[tuple[str, Tensor]]:
    """Yield all weights under the names of transformers."""
    state = {name: x.detach().float().cpu() for name, x in system.state_dict().items()}
    mono = "codec.codec." if system.spec.codec.channels == 2 and hasattr(system.codec, "codec") else "codec."
    codec = encodec.weights_to_transformers(strip_prefix(state, mono))
    if system.generator is None:
        yield from codec.items()
        return
    yield from ((f"audio_encoder.{name}", x) for name, x in codec.items())
    generator: Any = system.spec.generator
    name, melody = _named(system, "t5"), _named(system, "chroma")
    layout = musicgen_key_map(generator.depth, system.spec.codec.frame_format.channels, cross=melody is None)
    yield from ((f"decoder.{name}", x) for name, x in layout.export_weights(strip_prefix(state, "generator.")).items())
    t5: Any = system.conditioners[name]
    text = dict(t5.encoder.state_dict() if t5.spec.train else t5.pretrained.weights())
    yield "text_encoder.shared.weight", text.pop("embed_tokens.weight").detach().float().cpu()
    yield from ((f"text_encoder.encoder.{key}", x.detach().float().cpu()) for key, x in text.items())
    for each, theirs in ((name, "enc_to_dec_proj"), (melody, "audio_enc_to_dec_proj")):
        yield from ((f"{theirs}.{end}", x) for end, x in strip_prefix(state, f"conditioners.{each}.out.").items())


def _chroma_extractor_config(spec: Any) -> dict[str, Any]:
    return {
        "feature_extractor_type": "MusicgenMelodyFeatureExtractor",
        "feature_size": spec.bins,
        "num_chroma": spec.bins,
        "sampling_rate": spec.sample_rate,
        "n_fft": spec.window,
        "hop_length": spec.hop,
        "chunk_length": _chroma_seconds(spec),
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "stem_indices": [3, 2],
    }


def _chroma_seconds(spec: Any) -> int:
    """Return the whole seconds to which audio is cut; by default enough for all frames."""
    seconds = spec.max_frames * spec.hop / spec.sample_rate - 1 if spec.seconds is None else spec.seconds
    return max(1, math.ceil(seconds))


def _generation(system: System, bins: int) -> dict[str, Any]:
    """Return the generation config; `max_length` includes the start token and the delay of the last codebook."""
    defaults, frame_format, generator = system.spec.defaults, system.spec.codec.frame_format, system.spec.generator
    sampling: Any = generator.sampling.parse(defaults.sampling, source="defaults.sampling")  # type: ignore[union-attr]
    frames = min(round(defaults.seconds * frame_format.frame_rate), generator.max_frames)  # type: ignore[union-attr]
    strategy = {"do_sample": False} if sampling.temperature == 0 else {"do_sample": True, "temperature": sampling.temperature}
    return {
        "bos_token_id": bins,
        "decoder_start_token_id": bins,
        "pad_token_id": bins,
        "max_length": frames + frame_format.channels // system.spec.codec.channels,
        "guidance_scale": defaults.guidance,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p or 1.0,
        **strategy,
    }


def _named(system: System, kind: str) -> Any:
    """Return the name of the first conditioner of a type, or None."""
    return next((name for name, part in system.spec.conditioners.items() if part.type == kind), None)  # type: ignore[attr-defined]


def _mono(system: System) -> Any:
    """Return the spec of the mono codec."""
    return getattr(system.spec.codec, "codec", system.spec.codec)


def _card(system: System) -> str:
    card = system.card
    front = {"license": card.license.lower(), "library_name": "transformers", "pipeline_tag": "text-to-audio"}
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {card.name}\n\n{card.summary}\n\n{card.notice}\n"


def _text(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=2) + "\n"
