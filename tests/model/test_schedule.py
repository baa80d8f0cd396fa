"""The learning rate, by hand from equation 3."""

import pytest

from dragoman_model.schedule import noam


@pytest.mark.parametrize(
    ("step", "rate"),
    # d_model 512, 4,000 warm-up steps: 512^-0.5 * min(step^-0.5, step * 4000^-1.5)
    [(1, 1.746928107e-07), (4_000, 6.987712430e-04), (100_000, 1.397542486e-04)],
)
def test_values_of_the_paper(step: int, rate: float) -> None:
    assert noam(step, 512, 4_000) == pytest.approx(rate, rel=1e-9)
