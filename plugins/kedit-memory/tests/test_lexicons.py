"""Words as vectors: a subject is found in every prompt that names it, whatever else that says."""

import pytest
import torch

from kedit_memory.lexicons import Lexicon, entries, lexicon_of, names_in

TRAINING = [
    f"{ask} {name} is"
    for ask in ("The capital of", "The language spoken in")
    for name in ("Peru", "Mali", "New Zealand", "Papua New Guinea", "Chile", "the Congo")
]


@pytest.fixture(scope="module")
def lexicon():
    return lexicon_of(TRAINING, 1024)


@pytest.fixture(scope="module")
def wide(lexicon):
    """Return a lexicon whose products are the shares, within 0.05."""
    return Lexicon(width=4**7, rarity=lexicon.rarity)


def shared(lexicon, prompt, subject):
    return float(lexicon.said([prompt])[0] @ lexicon.named([subject])[0])


@pytest.mark.parametrize("subject", ["Ouagadougou", "New Caledonia", "the Upper Volta", "Perú"])
@pytest.mark.parametrize(
    "prompt",
    ["{} has as its chief town", "Asked of {}, they say", "Wer {} kennt, sagt", "{}'s flag:"],
)
def test_a_subject_that_no_training_met_is_found_in_any_wording(lexicon, subject, prompt):
    assert shared(lexicon, prompt.format(subject), subject) == pytest.approx(1, abs=0.25)
    assert shared(lexicon, prompt.format("Samarkand"), subject) < 0.4


def test_rare_words_count_more_than_common_ones(lexicon):
    part = shared(lexicon, "The weather in Volta is", "the Upper Volta")
    common = shared(lexicon, "the weather is", "the Upper Volta")
    assert part > 0.2 > common


def test_order_tells_names_of_the_same_words_apart(lexicon):
    own = shared(lexicon, "They saw Guinea New Papua", "Guinea New Papua")
    other = shared(lexicon, "They saw Papua New Guinea", "Guinea New Papua")
    assert own - other > 0.3


def test_sums_are_exact_so_a_batch_is_its_rows(lexicon):
    texts = [*TRAINING, "", "Peru", "?!"]
    batch = lexicon.said(texts)
    for text, row in zip(texts, batch, strict=True):
        assert torch.equal(lexicon.said([text])[0], row)
    assert not batch[-1].any()
    assert torch.equal(lexicon.said([]), torch.zeros(0, 1024))


@pytest.mark.parametrize("subject", ["", "?!", "🙂"])
def test_a_subject_without_words_stands_in_no_prompt(lexicon, subject):
    assert not lexicon.named([subject]).any()
    assert lexicon.named([subject, "Peru"])[1].any()


def test_what_is_nearly_at_right_angles_comes_from_width(lexicon):
    """The error of a product has the spread √(entries of the prompt · Σ weights²/ width)."""
    subjects = [f"name{n}" for n in range(200)]  # one entry each
    said = lexicon.said(["One two three four five six seven eight"])[0]
    wanted = (17 / lexicon.width) ** 0.5  # 15 entries, and where a name begins and ends
    assert float((lexicon.named(subjects) @ said).std()) == pytest.approx(wanted, rel=0.15)
    narrow = Lexicon(width=64, rarity=lexicon.rarity)
    spread = float((narrow.named(subjects) @ narrow.said(["One two three"])[0]).std())
    assert spread == pytest.approx((7 / 64) ** 0.5, rel=0.2)


@pytest.mark.parametrize(
    ("subject", "whole", "part"),
    [
        ("Osaka", "The fans of Osaka play", "The fans of Naomi Osaka play"),
        ("Miami", "Miami plays at home in", "Miami Beach lies in"),
        ("Miami", "The Miami fans play", "Inter Miami plays"),
        ("Upper Volta", "The Upper Volta of old", "The flag of New Upper Volta"),
    ],
)
def test_a_name_within_a_longer_name_is_found_less(wide, subject, whole, part):
    assert shared(wide, whole, subject) == pytest.approx(1, abs=0.05)
    assert shared(wide, part, subject) < 0.9


@pytest.mark.parametrize("subject", ["Osaka", "Naomi Osaka", "Perú"])
def test_in_a_text_all_in_small_letters_any_word_may_begin_or_end_a_name(wide, subject):
    assert shared(wide, f"the fans of {subject.lower()} play", subject) == pytest.approx(
        1, abs=0.05
    )


def test_names_are_runs_of_capitalised_words():
    assert names_in("The New York of John Smith, Mayor") == [
        ["the", "new", "york"],
        ["john", "smith"],
        ["mayor"],
    ]
    assert names_in("the eagle lands, 東京") == []
    assert names_in("by Naomi\u00a0Osaka\nOsaka is") == [["naomi", "osaka"], ["osaka"]]


def test_what_often_opens_a_text_is_no_part_of_the_name_behind_it(wide):
    """The training opens with "The"; a name that opens a text is a name all the same."""
    for prompt, subject in (
        ("The Osaka fans are", "Osaka"),
        ("The Hobbit is by", "The Hobbit"),
        ("Naomi Osaka is", "Naomi Osaka"),
    ):
        assert shared(wide, prompt, subject) == pytest.approx(1, abs=0.05)


def test_entries_are_words_and_pairs_of_the_end_of_a_text():
    assert entries("The Hague's mayor_2") == [
        *("the", "hague", "s", "mayor", "2"),
        *("the hague", "hague s", "s mayor", "mayor 2"),
    ]
    assert entries("東京 is")[:3] == ["東", "京", "is"]
    long = " ".join(f"w{n}" for n in range(100))
    assert "w99" in entries(long)
    assert "w51" not in entries(long)
