"""The towers of a CLAP (arXiv:2211.06687; HTS-AT, arXiv:2202.00874, and RoBERTa) as transformers computes them."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cadenza.core.checkpoint import check_finite, check_state_dict

COMPUTED = (".position_ids", ".token_type_ids", ".relative_position_index")  # tensors that follow from the config
_FUSION = (".fusion_model.", ".mel_conv2d.")  # weights that see a long sound at a glance; here one window is seen at a time


class ClapTowers(nn.Module):
    """The modules of transformers' ClapModel that are needed, by its names."""

    text_model: Any
    text_projection: Any
    audio_model: Any
    audio_projection: Any

    def __init__(self, model: nn.Module, reads: str) -> None:
        super().__init__()
        for side in ("text", "audio") if reads == "both" else (reads,):
            for name in (f"{side}_model", f"{side}_projection"):
                setattr(self, name, getattr(model, name))

    def text(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b e"]:
        pooled = self.text_model(input_ids=ids, attention_mask=self._bias(mask)).pooler_output
        return self.text_projection(pooled)

    def text_hidden_states(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"], layer: int) -> Float[Tensor, "b n e"]:
        """Hidden states of the text: 0 are the embeddings, 1 is what the first layer makes of them, -1 the last one."""
        x, bias, blocks = self.text_model.embeddings(input_ids=ids), self._bias(mask), self.text_model.encoder.layer
        for block in blocks[: layer % (len(blocks) + 1)]:
            x = block(x, bias)
        return x

    def audio(self, mel: Float[Tensor, "w f m"]) -> Float[Tensor, "w e"]:
        return self.audio_projection(self.audio_model(input_features=mel[:, None]).pooler_output)

    def _bias(self, mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b 1 1 n"]:
        dtype = self.text_model.pooler.dense.weight.dtype  # a mask of integers would be looked at by the host
        return torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype)[:, None, None]


def build_clap(config: Mapping[str, Any], reads: str) -> ClapTowers:
    """The towers for `reads`, text, audio or both, that a config of transformers' ClapModel describes, without weights."""
    from transformers import AutoConfig, ClapModel

    with torch.device("meta"):
        ours: Any = AutoConfig.for_model(**config)
        ours.audio_config.enable_fusion = False
        ours.audio_config.drop_path_rate = 0.0
        for part in (ours.text_config, ours.audio_config):
            part.hidden_dropout_prob = part.attention_probs_dropout_prob = 0.0
        return ClapTowers(ClapModel._from_config(ours, attn_implementation="eager"), reads).eval()


def load_clap(config: Mapping[str, Any], weights: Mapping[str, Tensor] | None, reads: str, *, source: str) -> ClapTowers:
    """The same with weights by transformers' names, or with zeros; CheckpointError, naming `source`, where they do not fit."""
    towers = build_clap(config, reads)
    wanted = towers.state_dict()
    computed = {key: _computed(towers, key) for key in wanted if key.endswith(COMPUTED)}
    rest = {key: x for key, x in wanted.items() if key not in computed}
    if weights is None:
        weights = {key: torch.zeros(x.shape, dtype=x.dtype) for key, x in rest.items()}
    fused = bool((config.get("audio_config") or {}).get("enable_fusion"))
    held = {key: x for key, x in weights.items() if not (fused and any(name in key for name in _FUSION))}
    check_state_dict(held, rest, source)
    check_finite(held, source=source)
    towers.load_state_dict({key: x.to(rest[key].dtype, copy=True) for key, x in held.items()} | computed, assign=True)
    return towers


def _computed(towers: ClapTowers, key: str) -> Tensor:
    """A tensor of the towers that follows from the config."""
    owner: Any = towers.get_submodule(key.rpartition(".")[0])
    with torch.device("cpu"):
        if key.endswith("relative_position_index"):
            return owner.create_relative_position_index()
        shape = owner.get_buffer(key.rpartition(".")[2]).shape
        return torch.arange(shape[1])[None] if key.endswith("position_ids") else torch.zeros(shape, dtype=torch.long)
