"""Tokenizers of the usual kinds, trained on a few words; neither has a pad token."""

import json

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXTS = [*["We hear of Toko Yasuda the"] * 9, "The mother tongue of Danielle Darrieux is"]
WORDS = ["User: Paris is the capital of France", "Paris is in France, München is in Germany"]
VOCABULARY = 300


def byte_tokenizer(*, start: bool = False) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer as GPT-2's; with ``start`` texts begin with a token, as Llama's."""
    rules = Tokenizer(models.BPE())
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    rules.train_from_iterator(TEXTS, trainer)
    rules.post_processor = (
        processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        if start
        else processors.ByteLevel(trim_offsets=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=rules, bos_token="<s>", eos_token="</s>")


def metaspace_tokenizer(*, unigram=False):
    """Return a tokenizer that writes blanks as ▁ and one before every text, as SentencePiece does.

    It reads unknown characters as bytes. Of byte pairs it puts the ▁ in as Llama 2's does, before
    tokenising; of unigrams as T5's does, word by word.
    """
    added = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    if unigram:
        # Scores of their lengths: the longest pieces win, bytes lose to everything.
        words = {"▁" + word for text in WORDS for word in text.replace(",", "").split()}
        letters = {letter for word in words for letter in word} | {","}
        scored = {piece: -10.0 / len(piece) for piece in sorted(words | letters)}
        vocabulary = [*((one, -100.0) for one in added), *scored.items()]
        rules = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
        rules.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    else:
        trainer = trainers.BpeTrainer(vocab_size=120, show_progress=False)
        learnt = Tokenizer(models.BPE())
        learnt.train_from_iterator([f" {text}".replace(" ", "▁") for text in WORDS], trainer)
        found = json.loads(learnt.to_str())["model"]
        pieces = sorted(found["vocab"], key=found["vocab"].get)
        vocabulary = {piece: place for place, piece in enumerate([*added, *pieces])}
        merges = [tuple(pair) for pair in found["merges"]]
        rules = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
        rules.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    rules.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    rules.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=rules, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
