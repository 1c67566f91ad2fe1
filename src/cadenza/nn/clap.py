"""The text and audio towers of CLAP (arXiv:2211.06687: RoBERTa and HTS-AT, arXiv:2202.00874), from transformers."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cadenza.core.checkpoint import check_finite, check_state_dict

COMPUTED_BUFFERS = (".position_ids", ".token_type_ids", ".relative_position_index")  # buffers computed from the config
_FUSION = (".fusion_model.", ".mel_conv2d.")  # weights of feature fusion, which is not used: windows are encoded one at a time


class ClapTowers(nn.Module):
    """The modules of transformers' ClapModel for `modalities`: text, audio or both, with its names."""

    text_model: Any
    text_projection: Any
    audio_model: Any
    audio_projection: Any

    def __init__(self, model: nn.Module, modalities: str) -> None:
        super().__init__()
        for side in ("text", "audio") if modalities == "both" else (modalities,):
            for name in (f"{side}_model", f"{side}_projection"):
                setattr(self, name, getattr(model, name))

    def text(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b e"]:
        pooled = self.text_model(input_ids=ids, attention_mask=self._bias(mask)).pooler_output
        return self.text_projection(pooled)

    def text_hidden_states(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"], layer: int) -> Float[Tensor, "b n e"]:
        """Return the hidden states after `layer` layers of the text tower; 0: embeddings, -1: last layer."""
        x, bias, blocks = self.text_model.embeddings(input_ids=ids), self._bias(mask), self.text_model.encoder.layer
        for block in blocks[: layer % (len(blocks) + 1)]:
            x = block(x, bias)
        return x

    def audio(self, mel: Float[Tensor, "w f m"]) -> Float[Tensor, "w e"]:
        return self.audio_projection(self.audio_model(input_features=mel[:, None]).pooler_output)

    def _bias(self, mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b 1 1 n"]:
        dtype = self.text_model.pooler.dense.weight.dtype  # an integer mask would synchronise with the host
        return torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype)[:, None, None]


def build_clap(config: Mapping[str, Any], modalities: str) -> ClapTowers:
    """Build the towers of a config of transformers' ClapModel on the meta device."""
    from transformers import AutoConfig, ClapModel

    with torch.device("meta"):
        clap_config: Any = AutoConfig.for_model(**config)
        clap_config.audio_config.enable_fusion = False
        clap_config.audio_config.drop_path_rate = 0.0
        for part in (clap_config.text_config, clap_config.audio_config):
            part.hidden_dropout_prob = part.attention_probs_dropout_prob = 0.0
        return ClapTowers(ClapModel._from_config(clap_config, attn_implementation="eager"), modalities).eval()


def load_clap(config: Mapping[str, Any], weights: Mapping[str, Tensor] | None, modalities: str, *, source: str) -> ClapTowers:
    """Build the towers with weights by transformers' names, or zeros; CheckpointError, naming `source`, on a mismatch."""
    towers = build_clap(config, modalities)
    expected = towers.state_dict()
    computed = {key: _computed(towers, key) for key in expected if key.endswith(COMPUTED_BUFFERS)}
    rest = {key: x for key, x in expected.items() if key not in computed}
    if weights is None:
        weights = {key: torch.zeros(x.shape, dtype=x.dtype) for key, x in rest.items()}
    fused = bool((config.get("audio_config") or {}).get("enable_fusion"))
    state_dict = {key: x for key, x in weights.items() if not (fused and any(name in key for name in _FUSION))}
    check_state_dict(state_dict, rest, source)
    check_finite(state_dict, source=source)
    towers.load_state_dict({key: x.to(rest[key].dtype, copy=True) for key, x in state_dict.items()} | computed, assign=True)
    return towers


def _computed(towers: ClapTowers, key: str) -> Tensor:
    """Compute a buffer from the config."""
    owner: Any = towers.get_submodule(key.rpartition(".")[0])
    with torch.device("cpu"):
        if key.endswith("relative_position_index"):
            return owner.create_relative_position_index()
        shape = owner.get_buffer(key.rpartition(".")[2]).shape
        return torch.arange(shape[1])[None] if key.endswith("position_ids") else torch.zeros(shape, dtype=torch.long)
