"""Copies made for robustness."""

import pytest

from dragoman_model.augment import AugmentOptions, augmented

OFF = {"upper_share": 0.0, "title_share": 0.0, "unstopped_share": 0.0, "placeholder_share": 0.0}
PAIRS = [("A dog runs.", "Ein Hund läuft."), ("it rains", "es regnet")]


@pytest.mark.parametrize(
    ("kind", "copies"),
    [
        ("upper_share", [("A DOG RUNS.", "EIN HUND LÄUFT."), ("IT RAINS", "ES REGNET")]),
        ("title_share", [("A Dog Runs.", "Ein Hund Läuft."), ("It Rains", "Es Regnet")]),
        ("unstopped_share", [("A dog runs", "Ein Hund läuft")]),
    ],
)
def test_each_kind_changes_both_sides(kind: str, copies: list[tuple[str, str]]) -> None:
    found = list(augmented(PAIRS, AugmentOptions(**{**OFF, kind: 1.0}), seed=1))
    assert [pair for pair in found if pair not in PAIRS] == copies
    assert [pair for pair in found if pair in PAIRS] == PAIRS


def test_placeholders_are_copied_through() -> None:
    found = list(augmented(PAIRS * 50, AugmentOptions(**{**OFF, "placeholder_share": 1.0}), seed=1))
    copies = found[1::2]
    assert len(copies) == 100
    for source, target in copies:
        marks = [word.rstrip(":") for word in source.split() if word[0] in "{_"]
        assert len(marks) == 1
        assert marks[0] in target
    assert len({word for source, _ in copies for word in source.split() if word[0] in "{_"}) > 10


def test_the_seed_decides_and_no_share_means_no_copy() -> None:
    options = AugmentOptions()
    assert list(augmented(PAIRS * 99, options, 3)) == list(augmented(PAIRS * 99, options, 3))
    assert list(augmented(PAIRS * 99, AugmentOptions(**OFF), 3)) == PAIRS * 99


def test_a_share_beyond_one_is_refused() -> None:
    with pytest.raises(ValueError, match="upper_share"):
        AugmentOptions(upper_share=1.5)
