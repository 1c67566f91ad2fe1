"""Tiny models of transformers and AudioCraft with random weights, written as those libraries write them."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

PIECES = ["<pad>", "</s>", "<unk>", *"▁abcdefghijklmnopqrstuvwxyz0123456789,", "▁piano", "▁drums", "▁sad"]


def write_tokenizer(folder: Path) -> None:
    """A T5 tokenizer of a few pieces."""
    tokenizer = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(PIECES)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    own = {"tokenizer_class": "T5Tokenizer", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))


def musicgen(*, melody: bool = False, **changes: Any) -> Any:
    """A MusicGen of transformers, each of whose weights matters; `changes` are `part__key=value`."""
    import transformers
    from transformers import EncodecConfig, T5Config

    kind: Any = "MusicgenMelody" if melody else "Musicgen"
    whole, decoder, model = (
        getattr(transformers, f"{kind}{end}") for end in ("Config", "DecoderConfig", "ForConditionalGeneration")
    )
    fields: dict[str, dict[str, Any]] = {
        "text": {"vocab_size": len(PIECES), "d_model": 12, "d_kv": 4, "d_ff": 20, "num_heads": 3, "num_layers": 2},
        "audio": {
            **{"sampling_rate": 8000, "upsampling_ratios": [4, 4, 5], "num_filters": 4, "hidden_size": 8, "codebook_size": 16},
            **{"codebook_dim": 8, "num_lstm_layers": 1, "use_causal_conv": False, "use_conv_shortcut": False},
            **{"target_bandwidths": [1.2]},
        },
        "decoder": {
            **{"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24},
            **{"num_codebooks": 3, "pad_token_id": 16, "bos_token_id": 16, "max_position_embeddings": 64},
        },
        "whole": {"chroma_length": 9} if melody else {},
    }
    for name, value in changes.items():
        part, _, key = name.partition("__")
        fields[part][key] = value
    torch.manual_seed(0)
    config = whole(
        text_encoder=T5Config(**fields["text"]).to_dict(),
        audio_encoder=EncodecConfig(**fields["audio"]).to_dict(),
        decoder=decoder(**fields["decoder"]).to_dict(),
        **fields["whole"],
    )
    model = model(config).eval()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith((".embed", ".embed_avg")):
            torch.nn.init.normal_(value)
        elif value.is_floating_point() and "inited" not in name and "embed_positions" not in name:
            torch.nn.init.normal_(value, mean=float("norm" in name and "weight" in name), std=0.2)
    for name, value in model.named_buffers():
        if name.endswith((".inited", ".cluster_size")):
            value.fill_(1)
    special = {"pad_token_id": 16, "bos_token_id": 16, "decoder_start_token_id": 16}
    for key, value in {**special, "max_length": 43, "do_sample": True, "guidance_scale": 3.0}.items():
        setattr(model.generation_config, key, fields["decoder"]["vocab_size"] if key in special else value)
    return model


@cache
def _plain() -> Any:
    return musicgen()


def musicgen_folder(folder: Path, **changes: Any) -> Any:
    """Writes a MusicGen and its tokenizer as transformers does; the model."""
    model = musicgen(**changes) if changes else _plain()
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


def melody_folder(folder: Path, *, extractor_changes: dict[str, Any] | None = None, **changes: Any) -> Any:
    """Write a MusicGen with melody conditioning, with what its processor says in the words of transformers 5; the model."""
    model = musicgen_folder(folder, melody=True, **changes)
    extractor = {"feature_extractor_type": "MusicgenMelodyFeatureExtractor", "feature_size": 12, "sampling_rate": 8000}
    extractor |= {"n_fft": 512, "hop_length": 128, "chunk_length": 1, "n_samples": 8000, "padding_side": "right"}
    extractor |= {"padding_value": 0.0, "return_attention_mask": False, "stem_indices": [3, 2], **(extractor_changes or {})}
    whole = {"feature_extractor": extractor, "processor_class": "MusicgenMelodyProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(whole))
    return model


def tree(path: Path) -> Any:
    return json.loads(path.read_text())


def change(path: Path, **keys: Any) -> None:
    """Sets keys of a JSON file, `a__b=value` those of a section."""
    data = tree(path)
    for name, value in keys.items():
        node = data
        *way, last = name.split("__")
        for step in way:
            node = node[step]
        node[last] = value
    path.write_text(json.dumps(data))


CODEC = """
compression_model: encodec
sample_rate: 8000
channels: 1
encodec:
  {autoencoder: seanet, quantizer: rvq, sample_rate: "${sample_rate}", channels: "${channels}", causal: false,
   renormalize: false}
seanet:
  {dimension: 8, channels: "${channels}", causal: "${encodec.causal}", n_filters: 4, n_residual_layers: 1, ratios: [4, 4, 5],
   activation: ELU, activation_params: {alpha: 1.0}, norm: weight_norm, norm_params: {}, kernel_size: 7,
   residual_kernel_size: 3, last_kernel_size: 7, dilation_base: 2, pad_mode: reflect, true_skip: true, compress: 2, lstm: 1,
   disable_norm_outer_blocks: 0, decoder: {trim_right_ratio: 1.0, final_activation: null}, encoder: {}}
rvq: {n_q: 3, q_dropout: false, bins: 16, decay: 0.99, kmeans_init: true, kmeans_iters: 50, threshold_ema_dead_code: 2}
optim: {ema: {device: "${device}", updates: "${oc.env:NOWHERE}"}}
"""
LM = """
solver: musicgen
device: cpu
dora: {dir: "/checkpoint/${oc.env:USER}"}
sample_rate: 8000
channels: 1
dataset: {segment_duration: 2, train: {merge_text_p: 0.25}}
compression_model_checkpoint: //sig/0123abcd
compression_model_n_q: null
interleave_stereo_codebooks: {use: false, per_timestep: false}
lm_model: transformer_lm
codebooks_pattern:
  modeling: delay
  delay: {delays: [0, 1, 2], flatten_first: 0, empty_initial: 0}
  unroll: {flattening: [0, 1, 2], delays: [0, 0, 0]}
  music_lm: {group_by: 2}
transformer_lm:
  {dim: 16, num_heads: 2, num_layers: 2, hidden_scale: 1.5, n_q: 3, card: 16, dropout: 0.0, emb_lr: null, activation: gelu,
   norm_first: true, bias_ff: false, bias_attn: false, bias_proj: false, past_context: null, causal: true, custom: false,
   memory_efficient: true, attention_as_float32: false, layer_scale: null, positional_embedding: sin, xpos: false,
   checkpointing: none, weight_init: gaussian, depthwise_init: current, zero_bias_init: true, norm: layer_norm,
   cross_attention: false, qk_layer_norm: false, qk_layer_norm_cross: false, attention_dropout: null, kv_repeat: 1,
   two_step_cfg: false}
classifier_free_guidance: {training_dropout: 0.3, inference_coef: 2.5}
attribute_dropout: {}
fuser:
  {cross_attention_pos_emb: false, cross_attention_pos_emb_scale: 1, sum: [], prepend: [], cross: [description],
   input_interpolate: []}
conditioners:
  args: {merge_text_conditions_p: 0.25, drop_desc_p: 0.5}
  description: {model: t5, t5: {name: tiny-t5, finetune: false, word_dropout: 0.3, normalize_text: false}}
"""


SUNG = """
fuser: {cross_attention_pos_emb: false, cross_attention_pos_emb_scale: 1, sum: [], prepend: [self_wav, description], cross: [],
  input_interpolate: []}
conditioners:
  self_wav: {model: chroma_stem, chroma_stem: {sample_rate: "${sample_rate}", n_chroma: 12, radix2_exp: 9, argmax: true,
    match_len_on_eval: false, eval_wavs: null, n_eval_wavs: 0, cache_path: null}}
  description: {model: t5, t5: {name: tiny-t5, finetune: false, word_dropout: 0.3, normalize_text: false}}
"""


def audiocraft_folder(folder: Path, *, melody: bool = False, **changes: Any) -> Any:
    """Writes transformers' tiny MusicGen as AudioCraft exports it, with `a__b=value` set in its config; transformers' model."""
    model = musicgen(melody=True) if melody else _plain()
    config = yaml.safe_load(LM) | (yaml.safe_load(SUNG) if melody else {})
    for name, value in changes.items():
        node = config
        *way, last = name.split("__")
        for step in way:
            node = node[step]
        node[last] = value
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: x.half() for name, x in audiocraft_lm(model).items()}
    save_package(folder / "state_dict.bin", state, yaml.safe_dump(config))
    save_package(folder / "compression_state_dict.bin", audiocraft_codec(model), CODEC)
    t5 = folder / "tiny-t5"
    model.text_encoder.save_pretrained(t5)
    write_tokenizer(t5)
    return model


def save_package(path: Path, state: dict[str, Tensor], config: str) -> None:
    torch.save({"best_state": state, "xp.cfg": config, "version": "1.4.0a2", "exported": True}, path)


def audiocraft_lm(model: Any) -> dict[str, Tensor]:
    """The weights of a language model by AudioCraft's names."""
    decoder, found = model.decoder.model.decoder, {}
    for k, (table, head) in enumerate(zip(decoder.embed_tokens, model.decoder.lm_heads, strict=True)):
        found |= {f"emb.{k}.weight": table.weight, f"linears.{k}.weight": head.weight}
    for i, layer in enumerate(decoder.layers):
        stem = f"transformer.layers.{i}."
        kinds = {"self_attn": layer.self_attn, "cross_attention": getattr(layer, "encoder_attn", None)}
        for there, ours in ((kind, attention) for kind, attention in kinds.items() if attention is not None):
            fused = torch.cat([ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight])
            found |= {f"{stem}{there}.in_proj_weight": fused, f"{stem}{there}.out_proj.weight": ours.out_proj.weight}
        found |= {f"{stem}linear1.weight": layer.fc1.weight, f"{stem}linear2.weight": layer.fc2.weight}
        norms = {
            "norm1": layer.self_attn_layer_norm,
            "norm2": layer.final_layer_norm,
        }
        if hasattr(layer, "encoder_attn"):
            norms["norm_cross"] = layer.encoder_attn_layer_norm
        for name, norm in norms.items():
            found |= {f"{stem}{name}.weight": norm.weight, f"{stem}{name}.bias": norm.bias}
    found |= {"out_norm.weight": decoder.layer_norm.weight, "out_norm.bias": decoder.layer_norm.bias}
    stem = "condition_provider.conditioners.description.output_proj."
    found |= {f"{stem}weight": model.enc_to_dec_proj.weight, f"{stem}bias": model.enc_to_dec_proj.bias}
    if hasattr(model, "audio_enc_to_dec_proj"):
        stem, sung = "condition_provider.conditioners.self_wav.", model.audio_enc_to_dec_proj
        found |= {f"{stem}output_proj.weight": sung.weight, f"{stem}output_proj.bias": sung.bias}
        found[f"{stem}chroma.spec.window"] = torch.hann_window(512)
    return {name: x.detach().clone() for name, x in found.items()}


def audiocraft_codec(model: Any) -> dict[str, Tensor]:
    """The weights of a codec by AudioCraft's names."""
    found = {}
    transposed = {
        f"decoder.layers.{i}"
        for i, layer in enumerate(model.audio_encoder.decoder.layers)
        if "Transpose" in type(layer).__name__
    }
    for name, x in model.audio_encoder.state_dict().items():
        conv = "convtr" if name.partition(".conv.")[0] in transposed else "conv"
        new = name.replace(".conv.", f".{conv}.{conv}.") if ".conv." in name else name
        new = new.replace(".layers.", ".model.", 1) if not name.startswith("quantizer") else new
        new = new.replace("quantizer.layers.", "quantizer.vq.layers.").replace(".codebook.", "._codebook.")
        new = new.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        )
        found[new] = x.detach().clone()
    return found
