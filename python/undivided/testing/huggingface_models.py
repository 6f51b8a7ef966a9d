"""Random tiny transformers models, one a family, each with a padded batch: what the integration is checked on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from .huggingface_batches import (
    IMAGE_TOKEN,
    VOCABULARY,
    audio,
    frames,
    image,
    image_to_text,
    mel,
    picture_and_text,
    text,
    text_left,
    text_to_text,
)

D_MODEL, D_FF, LAYERS, HEADS = 32, 48, 2, 4  # head_dim 8 is the least that the kernels take
TOKENS: dict[str, Any] = dict(pad_token_id=0, eos_token_id=1, bos_token_id=2, decoder_start_token_id=2)
BART: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    d_model=D_MODEL,
    encoder_layers=LAYERS,
    decoder_layers=LAYERS,
    encoder_attention_heads=HEADS,
    decoder_attention_heads=HEADS,
    encoder_ffn_dim=D_FF,
    decoder_ffn_dim=D_FF,
    max_position_embeddings=64,
    dropout=0.0,
    **TOKENS,
)
T5: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    d_model=D_MODEL,
    d_kv=8,
    d_ff=D_FF,
    num_layers=LAYERS,
    num_decoder_layers=LAYERS,
    num_heads=HEADS,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=20,
    dropout_rate=0.0,
    **TOKENS,
)
BERT: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    hidden_size=D_MODEL,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    intermediate_size=D_FF,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    pad_token_id=0,
)
LLAMA: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    hidden_size=D_MODEL,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    num_key_value_heads=2,
    intermediate_size=D_FF,
    head_dim=8,
    pad_token_id=0,
    eos_token_id=1,
    bos_token_id=2,
)
VIT: dict[str, Any] = dict(
    hidden_size=D_MODEL,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    intermediate_size=D_FF,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    image_size=16,
    patch_size=4,
    num_channels=3,
)


@dataclass(frozen=True)
class Family:
    """One family: a tiny config, the batch it takes, and how often a forward pass calls attention."""

    name: str
    model: str  # the class in transformers
    config: Callable[[], Any]
    inputs: Callable[[], dict[str, Tensor]]
    calls: int = 3 * LAYERS  # self-attention of both sides and cross attention
    generates: bool = True

    def build(self, attn_implementation: str, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The same weights at every call."""
        torch.manual_seed(0)
        config = self.config()
        model = getattr(transformers, self.model)._from_config(config, attn_implementation=attn_implementation)
        with torch.no_grad():
            for parameter in model.parameters():  # the tables and biases that start at 0 are in the test too
                parameter.add_(torch.randn(parameter.shape) * 0.05)
        return model.to(dtype).eval()


def of(name: str, **words: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, name)(**words)


def t5gemma() -> Any:
    part = {**LLAMA, **TOKENS, "query_pre_attn_scalar": 8, "sliding_window": 4, "attention_dropout": 0.0}
    module = lambda: transformers.T5GemmaModuleConfig(**part)  # noqa: E731
    return transformers.T5GemmaConfig(
        encoder=module(), decoder=module(), dropout_rate=0.0, vocab_size=VOCABULARY, tie_word_embeddings=False
    )


def bert_to_bert() -> Any:
    encoder = transformers.BertConfig(**BERT)
    decoder = transformers.BertConfig(**BERT, is_decoder=True, add_cross_attention=True)
    return transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder, **TOKENS)


def vit_to_mbart() -> Any:
    decoder = transformers.MBartConfig(**dict(BART, is_decoder=True, add_cross_attention=True))
    pair = transformers.ViTConfig(**VIT), decoder
    return transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(*pair, **TOKENS)


def florence() -> Any:
    """A vision tower of two stages, each with attention in windows and over channels, and BART."""
    vision: dict[str, Any] = dict(depths=(1, 1), patch_size=(7, 3), patch_stride=(4, 2), patch_padding=(3, 1))
    vision |= dict(patch_prenorm=(False, True), embed_dim=(16, 32), num_heads=(2, 4), num_groups=(2, 4))
    vision |= dict(window_size=2, projection_dim=D_MODEL, drop_path_rate=0.0)
    bart = dict(BART, model_type="bart")
    return transformers.Florence2Config(text_config=bart, vision_config=vision, image_token_id=IMAGE_TOKEN)


def bart(name: str, model: str, **changes: Any) -> Family:
    return Family(name, f"{model}ForConditionalGeneration", of(f"{model}Config", **(BART | changes)), text_to_text)


def t5(name: str, model: str, **changes: Any) -> Family:
    return Family(name, f"{model}ForConditionalGeneration", of(f"{model}Config", **(T5 | changes)), text_to_text)


def decoder(name: str, model: str, **changes: Any) -> Family:
    config = of(f"{model}Config", **{key: value for key, value in (LLAMA | changes).items() if value is not None})
    return Family(name, f"{model}ForCausalLM", config, text_left, calls=LAYERS)


SPARSE: dict[str, Any] = dict(
    num_experts=2, encoder_sparse_step=2, decoder_sparse_step=2
)  # every second layer has experts
WHISPER: dict[str, Any] = dict(BART, num_mel_bins=8, max_source_positions=20, max_target_positions=64)
SPEECH: dict[str, Any] = dict(
    BART, max_source_positions=64, max_target_positions=64, conv_channels=16, input_feat_per_channel=8
)
MOONSHINE: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    hidden_size=D_MODEL,
    intermediate_size=D_FF,
    encoder_num_hidden_layers=LAYERS,
    decoder_num_hidden_layers=LAYERS,
    encoder_num_attention_heads=HEADS,
    decoder_num_attention_heads=HEADS,
    pad_token_id=0,
)
ONE_SPARSE: dict[str, Any] = dict(SPARSE, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1)
SPEECH_MODEL = "Speech2TextForConditionalGeneration"

FAMILIES: tuple[Family, ...] = (
    t5("t5", "T5"),
    bart("bart", "Bart"),
    Family("marian", "MarianMTModel", of("MarianConfig", **BART), text_to_text),
    Family("whisper", "WhisperForConditionalGeneration", of("WhisperConfig", **WHISPER), mel),
    Family("bert", "BertForMaskedLM", of("BertConfig", **BERT), text, calls=LAYERS, generates=False),
    decoder("llama", "Llama"),
    decoder("gemma2", "Gemma2", query_pre_attn_scalar=8, sliding_window=4),
    decoder("gpt_oss", "GptOss", sliding_window=4, num_local_experts=3, num_experts_per_tok=2),
    t5("t5 gated", "T5", feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    t5("mt5", "MT5"),
    t5("umt5", "UMT5"),
    t5("switch", "SwitchTransformers", **ONE_SPARSE),
    Family("t5gemma", "T5GemmaForConditionalGeneration", t5gemma, text_to_text),
    bart("mbart", "MBart"),
    bart("plbart", "PLBart"),
    bart("m2m_100", "M2M100"),
    bart("nllb-moe", "NllbMoe", **SPARSE, router_jitter_noise=0.0),
    bart("pegasus", "Pegasus"),
    bart("blenderbot", "Blenderbot"),
    bart("blenderbot-small", "BlenderbotSmall"),
    Family("moonshine", "MoonshineForConditionalGeneration", of("MoonshineConfig", **MOONSHINE), audio),
    Family("speech_to_text", SPEECH_MODEL, of("Speech2TextConfig", **SPEECH), frames),
    Family("florence2", "Florence2ForConditionalGeneration", florence, picture_and_text, calls=3 * LAYERS + 4),
    Family("bert2bert", "EncoderDecoderModel", bert_to_bert, text_to_text),
    Family("vit-mbart", "VisionEncoderDecoderModel", vit_to_mbart, image_to_text),
    Family("vit", "ViTForImageClassification", of("ViTConfig", **VIT), image, calls=LAYERS, generates=False),
    decoder("mistral", "Mistral", sliding_window=4),
    decoder("qwen2", "Qwen2", head_dim=None),
    decoder("qwen3", "Qwen3"),
)
CORE = ("t5", "bart", "marian", "whisper", "bert", "llama", "gemma2", "gpt_oss")

# Models that never call the attention interface, by the class and its config's words.
REFUSED: dict[str, Callable[[], Any]] = {
    "LEDForConditionalGeneration": of("LEDConfig", **BART, attention_window=4),
    "MvpForConditionalGeneration": of("MvpConfig", **BART),
    "SpeechT5Model": of("SpeechT5Config"),
    "FSMTForConditionalGeneration": of(
        "FSMTConfig", langs=["en", "de"], src_vocab_size=VOCABULARY, tgt_vocab_size=VOCABULARY, d_model=D_MODEL
    ),
    "ProphetNetForConditionalGeneration": of("ProphetNetConfig", vocab_size=VOCABULARY, hidden_size=D_MODEL),
    "TrOCRForCausalLM": of("TrOCRConfig", vocab_size=VOCABULARY, d_model=D_MODEL),
}
