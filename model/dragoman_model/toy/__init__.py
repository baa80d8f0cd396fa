"""Toy text: an English-German grammar that yields any number of distinct sentence pairs from a seed.

It is small enough for a tiny network to learn within minutes and has what makes translation hard: agreement
over a distance, gender, case, and a different word order.

`words` says what a word is; `nouns`, `verbs` and `function_words` list them; `syntax` is the shape of a
sentence; `english` and `german` say it; `sampling` draws sentences; `corpus` makes pairs and files of them.
"""

from dragoman_model.toy.corpus import CorpusSizes, generate_pairs, write_corpus

__all__ = ["CorpusSizes", "generate_pairs", "write_corpus"]
