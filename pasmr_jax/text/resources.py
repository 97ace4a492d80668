"""Which languages have much text to learn from: data for the averages of an evaluation.

For MGSM's languages this is the split of its paper (Shi et al. 2022, arXiv 2210.03057, figure 1):
underrepresented are sw, bn, te and th, high-resource ja, zh, ru, es, fr and de. The others follow
the classes of Joshi et al. 2020 ("The State and Fate of Linguistic Diversity and Inclusion in the
NLP World", lang2tax.txt), 4 and 5 being high; on MGSM's languages the two agree.
"""

HIGH_RESOURCE = frozenset(
  ("ar", "de", "en", "es", "fa", "fr", "hi", "it", "ja", "ko", "pl", "pt", "ru", "tr", "vi", "zh")
)
LOW_RESOURCE = frozenset(("am", "bn", "ha", "id", "sw", "ta", "te", "th", "uk", "ur", "yo", "zu"))
