"""Tiny random models of every supported family, saved by transformers as published checkpoints are.

TINY has what differs from SHAPE in each config. The tensors have the names that transformers gives them in files:
experts one by one, and language models below their wrapper.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast

VOCAB = 128
SPECIAL = ["<unk>", "<s>", "<|im_start|>", "<|im_end|>"]
TEXT = ["the quick brown fox jumps over the lazy dog; a model answers the question that the user asks in a few words"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT = 1024
Config = dict[str, Any]
SHAPE: Config = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 3,
    "bos_token_id": 1,
    "eos_token_id": 3,
}
EXPERTS: Config = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LOCAL_EXPERTS: Config = {"num_local_experts": 4, "num_experts_per_tok": 2}
DELTA: Config = {
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
MAMBA: Config = {
    "mamba_n_heads": 32,
    "mamba_d_head": 4,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_d_ssm": 128,
}
LATENT: Config = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "head_dim": 16,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}
LFM2: Config = {"conv_dim": 64, "block_dim": 64}  # published configs have them, and vLLM reads them
WIDE_HEADS: Config = {"num_attention_heads": 2, "num_key_value_heads": 1}  # of hidden_size / heads = 32 channels
SLIDES = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 32}
MIXED = {"layer_types": ["linear_attention"] * 3 + ["full_attention"]}
VISION: Config = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "patch_size": 8,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [0],
    "window_size": 16,
}
SIGLIP: Config = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
PLAIN = (
    *("llama", "qwen2", "qwen3", "mistral", "ministral", "ministral3", "smollm3", "granite", "phi3", "seed_oss"),
    *(
        "ernie4_5",
        "hunyuan_v1_dense",
        "gemma",
        "arcee",
        "olmo",
        "olmo2",
        "cohere",
        "starcoder2",
        "stablelm",
        "nemotron",
    ),
    *("apertus", "jais2", "glm", "glm4", "helium", "nanochat", "phi", "gpt2", "gpt_neox", "gpt_bigcode", "bloom"),
    *("falcon", "nemotron"),
)
TINY: dict[str, Config] = {
    **{name: {} for name in PLAIN},
    **{name: SLIDES for name in ("gemma2", "gemma3_text", "cohere2", "olmo3", "exaone4", "cwm", "vaultgemma")},
    **{name: {"head_dim": 16} for name in ("stablelm", "helium")},
    "falcon": {"head_dim": None},
    "opt": {"word_embed_proj_dim": 64, "ffn_dim": 128},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False} | LFM2,
    "qwen3_5_text": DELTA | MIXED | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
    "qwen3_next": DELTA | MIXED | EXPERTS | {"shared_expert_intermediate_size": 64},
    "granitemoehybrid": MAMBA
    | WIDE_HEADS
    | {"layer_types": ["mamba", "attention"], "num_local_experts": 0, "shared_intermediate_size": 128},
    "falcon_h1": MAMBA | WIDE_HEADS,
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "mlp"],
        "num_hidden_layers": 3,
        "mamba_num_heads": 32,
        "mamba_head_dim": 4,
        "ssm_state_size": 16,
        "n_groups": 1,
    },
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 64},
    "qwen3_moe": EXPERTS,
    "olmoe": EXPERTS | {"intermediate_size": 64, "head_dim": 16},
    "mixtral": LOCAL_EXPERTS,
    "granitemoe": LOCAL_EXPERTS,
    "lfm2_moe": EXPERTS | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1} | LFM2,
    "deepseek_v2": LATENT | {"topk_method": "greedy"},
    "deepseek_v3": LATENT,
    "mellum": EXPERTS | SLIDES,
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 64},
    "gpt_oss": LOCAL_EXPERTS | SLIDES,
    "gemma4_text": SLIDES
    | {
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 32,
        "vocab_size_per_layer_input": VOCAB,
        "global_head_dim": 32,
    },
}
WRAPPED: dict[str, tuple[str, Config, Config]] = {  # wrapper -> the tiny text model, its changes, and the other parts
    "qwen3_5": ("qwen3_5_text", {}, {"vision_config": VISION}),
    "qwen2_5_vl": ("qwen2", {"head_dim": 16, "mrope": [2, 3, 3]}, {"vision_config": VISION}),
    "qwen3_vl": ("qwen3", {"mrope": [6, 5, 5]}, {"vision_config": VISION}),
    "gemma3": ("gemma3_text", {}, {"vision_config": SIGLIP, "mm_tokens_per_image": 4}),
    "mistral3": (
        "ministral3",
        {},
        {"vision_config": SIGLIP | {"model_type": "pixtral", "head_dim": 16}, "spatial_merge_size": 2},
    ),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of exactly VOCAB tokens. It encodes all ASCII text; any other byte is <unk>."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    ascii_text = "".join(map(chr, [9, 10, *range(32, 127)]))
    letters = sorted({c for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(ascii_text) for c in word})
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=SPECIAL, initial_alphabet=letters, min_frequency=1, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        pad_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
    )


def tiny_config(model_type: str) -> Any:
    """The transformers config of a tiny model."""
    if model_type not in WRAPPED:
        settings = SHAPE | TINY[model_type]
        return AutoConfig.for_model(model_type, **{key: value for key, value in settings.items() if value is not None})
    text, changes, parts = WRAPPED[model_type]
    settings = SHAPE | TINY[text] | changes
    sections = settings.pop("mrope", None)
    if sections:
        settings["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    settings |= {} if model_type.startswith("qwen") else {"model_type": text}
    tokens = {"image_token_id": 4, "video_token_id": 5, "vision_start_token_id": 6, "vision_end_token_id": 7}
    ends = {key: SHAPE[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return AutoConfig.for_model(model_type, text_config=settings, tie_word_embeddings=False, **tokens, **ends, **parts)


@torch.no_grad()
def save_tiny(
    model_type: str, out: Path, seed: int = 0, dtype: torch.dtype = torch.bfloat16, **changes: Any
) -> transformers.PreTrainedModel:
    """Write a tiny random model to `out`, and return it in `dtype`. `changes` are applied to its config.

    Outputs of linears have a third of their inputs' magnitude, so that the residual stream dominates, as it does in
    trained models. Norms lie near their start.
    """
    config = tiny_config(model_type)
    for key, value in changes.items():
        setattr(config, key, value)
    loader = AutoModelForImageTextToText if model_type in WRAPPED else AutoModelForCausalLM
    torch.manual_seed(seed)
    model: transformers.PreTrainedModel = loader.from_config(config, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            size = 1.0 if "embed" in name else 0.35
            parameter.copy_(size * torch.randn(parameter.shape) * parameter.shape[-1] ** -0.5)
        elif "norm" in name.rpartition(".")[0]:
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.to(dtype).save_pretrained(out)
    make_tokenizer().save_pretrained(out)
    settings = out / "tokenizer_config.json"
    values = json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.write_text(json.dumps(values, indent=2) + "\n")
    return model
