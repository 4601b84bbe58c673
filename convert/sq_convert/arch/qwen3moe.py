"""Qwen3 with mixtures of experts: in some or all blocks a router chooses among many feed-forward networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .decoder import Decoder, Keys
from .qwen3 import Qwen3
from .tensors import Kind, Tensor


class Qwen3Moe(Qwen3):
    gguf_name = "qwen3moe"
    model_class = "Qwen3MoeForCausalLM"
    fields = (
        *Qwen3.fields, "moe_intermediate_size", "num_experts", "num_local_experts", "num_experts_per_tok",
        "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers", "output_router_logits",
        "router_aux_loss_coef",
    )  # fmt: skip

    def windows(self, config: Any) -> list[int]:
        return Decoder.windows(self, config)  # one for all layers

    def mixtures(self, config: Any) -> list[int]:
        """Which layers have experts: 1, else 0."""
        return [
            int(n not in config.mlp_only_layers and (n + 1) % config.decoder_sparse_step == 0)
            for n in range(config.num_hidden_layers)
        ]

    def _block(self, config: Any, block: int) -> Iterator[Tensor]:
        if not self.mixtures(config)[block]:
            yield from super()._block(config, block)
            return
        dense = ("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight")
        yield from (tensor for tensor in super()._block(config, block) if not tensor.name.endswith(dense))
        n_embd, n_ff = config.hidden_size, config.moe_intermediate_size
        blk, mlp = f"blk.{block}", f"model.layers.{block}.mlp"
        router = (config.num_experts, n_embd)
        yield Tensor(f"{blk}.ffn_gate_inp.weight", f"{mlp}.gate.weight", router, Kind.EXACT, block)
        for expert in range(config.num_experts):
            for name, shape, fused, row in (
                ("gate", (n_ff, n_embd), "gate_up_proj", 0),
                ("up", (n_ff, n_embd), "gate_up_proj", n_ff),
                ("down", (n_embd, n_ff), "down_proj", 0),
            ):
                yield Tensor(
                    f"{blk}.ffn_{name}.{expert}.weight",
                    f"{mlp}.experts.{expert}.{name}_proj.weight",
                    shape,
                    Kind.MATRIX,
                    block,
                    parameter=(f"{mlp}.experts.{fused}", (expert, slice(row, row + shape[0]))),
                )

    def keys(self, config: Any) -> Keys:
        mixtures = self.mixtures(config)
        keys: Keys = {
            "expert_count": config.num_experts,
            "expert_used_count": config.num_experts_per_tok,
            "expert_feed_forward_length": config.moe_intermediate_size,
            "expert_weights_norm": bool(config.norm_topk_prob),
        }
        keys = super().keys(config) | {f"{self.gguf_name}.{key}": value for key, value in keys.items()}
        if not all(mixtures):
            keys["squeezellm.layers.experts"] = mixtures
        return keys
