"""The network: its size, its masks, its cache."""

import math

import pytest
import torch
from torch import Tensor

from dragoman_model.config import ModelConfig, preset_config
from dragoman_model.transformer import Transformer, sinusoids

VARIANTS = [
    {"norm_first": False, "positions": "sinusoidal"},
    {"norm_first": True, "positions": "sinusoidal"},
    {"norm_first": False, "positions": "learned"},
    {"norm_first": True, "positions": "learned", "tied_output": False, "decoder_layers": 1},
]


def tiny(**changes: object) -> Transformer:
    torch.manual_seed(0)
    config = ModelConfig(
        **{
            "source_vocabulary_size": 40,
            "target_vocabulary_size": 40,
            "d_model": 32,
            "num_heads": 4,
            "d_ff": 48,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "dropout": 0.0,
            **changes,
        }
    )
    return Transformer(config).eval()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(4, 40, (3, 7), generator=generator)
    return source, torch.tensor([7, 4, 2]), torch.randint(4, 40, (3, 9), generator=generator)


def test_base_preset_has_the_parameters_of_the_paper() -> None:
    config = preset_config("base", source_vocabulary_size=37_000, target_vocabulary_size=37_000)
    with torch.device("meta"):
        assert Transformer(config).num_parameters == 63_082_496


@pytest.mark.parametrize("changes", VARIANTS)
def test_cached_steps_equal_the_whole_pass(changes: dict[str, object]) -> None:
    model = tiny(**changes)
    source, lengths, target = batch()
    with torch.inference_mode():
        whole = model(source, lengths, target)
        state = model.start(model.encode(source, lengths))
        steps = []
        for position in range(target.size(1)):
            logits, state = model.decode(target[:, position : position + 1], state)
            steps.append(logits)
    assert state.past == target.size(1)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_several_tokens_at_once_continue_a_cache() -> None:
    model = tiny()
    source, lengths, target = batch()
    with torch.inference_mode():
        whole = model(source, lengths, target)
        _, state = model.decode(target[:, :4], model.start(model.encode(source, lengths)))
        rest, _ = model.decode(target[:, 4:], state)
    torch.testing.assert_close(rest, whole[:, 4:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", VARIANTS)
def test_nothing_looks_at_padding(changes: dict[str, object]) -> None:
    model = tiny(**changes)
    source, lengths, target = batch()
    altered = source.clone()
    for row, length in enumerate(lengths.tolist()):
        altered[row, length:] = 39
    with torch.inference_mode():
        torch.testing.assert_close(model(source, lengths, target), model(altered, lengths, target))


def test_no_position_sees_its_future() -> None:
    model = tiny()
    source, lengths, target = batch()
    altered = target.clone()
    altered[:, 5:] = 4
    with torch.inference_mode():
        before, after = model(source, lengths, target), model(source, lengths, altered)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_word_order_matters() -> None:
    model = tiny()
    source, _, target = batch()
    with torch.inference_mode():
        full = torch.tensor([7, 7, 7])
        assert not torch.allclose(model(source, full, target), model(source.flip(1), full, target))


def test_sinusoids_follow_the_paper() -> None:
    table = sinusoids(10, 8)
    assert table[3, 4].item() == pytest.approx(math.sin(3 / 10_000 ** (4 / 8)))
    assert table[3, 5].item() == pytest.approx(math.cos(3 / 10_000 ** (4 / 8)))


def test_input_beyond_learned_positions_is_an_error_that_says_so() -> None:
    model = tiny(positions="learned", max_positions=5)
    source, lengths, _ = batch()
    with pytest.raises(ValueError, match="7 tokens exceeds the model's max_positions"):
        model.encode(source, lengths)


def test_tied_embeddings_are_one_matrix() -> None:
    tied, untied = tiny(), tiny(tied_output=False)
    assert tied.decoder.output.weight is tied.encoder.embedding.tokens.weight
    assert untied.num_parameters == tied.num_parameters + 40 * 32


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_heads": 5}, "num_heads"),
        ({"encoder_layers": 0}, "encoder_layers"),
        ({"dropout": 1.0}, "dropout"),
        ({"positions": "rotary"}, "positions"),
        ({"target_vocabulary_size": 41}, "shared_vocabulary"),
    ],
)
def test_dimensions_that_do_not_fit_are_refused(changes: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        tiny(**changes)
