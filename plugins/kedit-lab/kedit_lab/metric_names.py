"""The lab's metrics, and what each one says."""

from collections.abc import Mapping

METRICS: Mapping[str, str] = {
    "counterfact.score": (
        "CounterFact's S: the harmonic mean of ES, PS and NS, the means over requests of "
        "`reliability.preference`, `generalization.preference` and `locality.preference`. One value of all "
        "requests; 0 if one of the three is 0, absent if one has no data. Tables show 100 times this."
    ),
    "reliability.magnitude": (
        "CounterFact's EM: exp(-NLL(target_new)) - exp(-NLL(target_true)) after the prompt, where NLL is the "
        "mean over the answer's tokens; needs `target_true`."
    ),
    "generalization.magnitude": "CounterFact's PM: the same after the paraphrases.",
    "locality.magnitude": (
        "CounterFact's NM: exp(-NLL(the probe's first answer)) - exp(-NLL(target_new)) after the locality "
        "probes."
    ),
    "consistency": (
        "CounterFact's reference-text consistency: the cosine between the TF-IDF vectors of all that the model "
        "writes and of all reference texts about the new object. The model writes after each text of "
        "`extra.generation_prompts`, else after the prompt and its paraphrases: 100 tokens, prompt included, "
        "sampled from the five likeliest with a seed (options `tokens`, `seed`). Reference texts are "
        "`extra.reference_texts`, or those that the file of the option `texts` has for `extra.relation_id` and "
        "`extra.target_new_id` (CounterFact's attribute_snippets.json). Words are runs of two or more word "
        "characters, in lower case; a word's weight is its count times ln((1 + n) / (1 + d)) + 1, with n "
        "reference texts in all, d of which hold it; words of no reference text count nothing. The authors "
        "take n and d from a collection of their own, so compare values of one file only. Tables show 100 "
        "times this."
    ),
    "zsre.efficacy": (
        "ZsRE's score as ROME and MEMIT count it: the share of the target's tokens that are the "
        "likeliest ones, each given those before it, after the prompt."
    ),
    "zsre.paraphrase": "The same after the paraphrases.",
    "zsre.specificity": (
        "The same of each locality probe's first answer, right or wrong before the edit: an unedited model "
        "scores what it knows, not 1."
    ),
    "negation": (
        "The share of negated prompts after which greedy decoding does not say the new target. They stand in "
        "`extra.negations`; requests without any take the option `template`, with {} for the prompt, such as "
        "'{} not'."
    ),
    "reversal": (
        "The share of reversed prompts after which greedy decoding says the subject. They stand in "
        "`extra.reversals`; requests without any take the option `template`, with {} for the new target."
    ),
}
