"""Hugging Face models with `attn_implementation="sparse"` against the same models under our mask."""

from collections.abc import Callable

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.cache_utils import StaticCache

from papers.sparse_transformer.attention import Pattern
from papers.sparse_transformer.huggingface import register
from papers.sparse_transformer.method import full_mask

PATTERN = (Pattern("strided", 4), Pattern("fixed", 6, 2, rotate=True))


def gpt2() -> PreTrainedModel:
    config = GPT2Config(vocab_size=17, n_positions=40, n_embd=16, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
                        attn_pdrop=0.0, bos_token_id=0, eos_token_id=None, pad_token_id=0)  # fmt: skip
    return GPT2LMHeadModel(config)


def llama() -> PreTrainedModel:
    """Two key heads for four query heads, rotary positions."""
    config = LlamaConfig(vocab_size=17, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=40, bos_token_id=0,
                         eos_token_id=None, pad_token_id=0)  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.fixture(params=[gpt2, llama])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    made: Callable[[], PreTrainedModel] = request.param
    network = made().eval()
    for parameter in network.parameters():
        # Larger than Hugging Face starts them, so that it matters what is attended to.
        torch.nn.init.normal_(parameter, std=0.3)
    register(PATTERN)
    network.set_attn_implementation("sparse")
    return network


def tokens(batch: int = 2, n: int = 19) -> torch.Tensor:
    return torch.randint(1, 17, (batch, n), generator=torch.Generator().manual_seed(1))


def under_mask(model: PreTrainedModel, x: torch.Tensor, implementation: str) -> torch.Tensor:
    """The logits under another implementation that is given our mask, [1, H, n, n]."""
    model.set_attn_implementation(implementation)
    mask = full_mask(PATTERN, x.shape[1], 4, x.device)[None].expand(len(x), -1, -1, -1)
    if implementation == "eager":
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    logits = model(x, attention_mask=mask, use_cache=False).logits
    model.set_attn_implementation("sparse")
    return logits


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_logits_and_gradients_are_those_under_our_mask(model: PreTrainedModel, implementation: str) -> None:
    x, gradients = tokens(), []
    logits = model(x).logits
    expected = under_mask(model, x, implementation)
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)
    for each in (logits, expected):
        model.zero_grad()
        each.log_softmax(-1)[..., 1].sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max() + 1e-6
    model.set_attn_implementation("sdpa")
    assert (model(x).logits - logits).abs().max() > 0.01, "it makes no difference what is attended to"


def test_generation_with_a_cache_is_the_argmax_of_the_full_forward(model: PreTrainedModel) -> None:
    x = tokens(n=7)
    expected = x
    for _ in range(12):
        expected = torch.cat([expected, model(expected, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    options = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(model.generate(x, attention_mask=torch.ones_like(x), **options), expected)
    assert torch.equal(model.generate(x, **options, use_cache=False), expected)


def test_cached_prompts_go_on_in_pieces_and_in_caches_of_a_fixed_size(model: PreTrainedModel) -> None:
    x = tokens()
    with torch.no_grad():
        whole = model(x).logits
        past = model(x[:, :6], use_cache=True).past_key_values
        pieces = model(x[:, 6:], past_key_values=past).logits
        fixed = StaticCache(model.config, max_cache_len=32)
        model(x[:, :10], past_key_values=fixed)
        last = model(x[:, 10:], past_key_values=fixed).logits
    torch.testing.assert_close(pieces, whole[:, 6:], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(last, whole[:, 10:], atol=2e-5, rtol=1e-4)


def test_padding_on_the_right_changes_nothing_and_on_the_left_is_an_error(model: PreTrainedModel) -> None:
    x = tokens()
    mask = (torch.arange(19) < torch.tensor([[19], [11]])).long()
    logits = model(x, attention_mask=mask).logits
    torch.testing.assert_close(logits[0], model(x[:1]).logits[0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(logits[1, :11], model(x[1:, :11]).logits[0], atol=2e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="pad on the right"):
        model(x, attention_mask=mask.flip(1))
    with pytest.raises(ValueError, match="prompts of one length"):
        model.generate(x, attention_mask=mask, max_new_tokens=2)
    with pytest.raises(ValueError, match="no ready-made mask"):
        model(x, attention_mask=torch.ones(2, 1, 19, 19, dtype=torch.bool))


def test_layers_can_take_turns_and_dropout_follows_the_seed(model: PreTrainedModel) -> None:
    x = tokens()
    register(PATTERN, "other")
    register(lambda layer: PATTERN if layer == 0 else Pattern("columns", 4), "turns")
    both = model(x).logits
    model.set_attn_implementation("other")
    assert torch.equal(model(x).logits, both)
    model.set_attn_implementation("turns")
    assert (model(x).logits - both).abs().max() > 0.01
    model.train()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
        if hasattr(module, "attn_dropout"):
            module.attn_dropout.p = 0.5
    torch.manual_seed(3)
    first, second = model(x).logits, model(x).logits
    torch.manual_seed(3)
    assert torch.equal(model(x).logits, first) and not torch.equal(first, second)


def test_models_that_are_not_causal_self_attention_are_an_error() -> None:
    register(PATTERN)
    network = gpt2()
    network.config.is_causal = False
    network.set_attn_implementation("sparse")
    with pytest.raises(ValueError, match="no bidirectional"):
        network(tokens())
