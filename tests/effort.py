"""How many examples a property test draws, in proportion to the profile that runs."""

from __future__ import annotations

from hypothesis import settings

BASE_EXAMPLES = 100


def examples(count: int) -> int:
    """Scale the number of examples of one test with the Hypothesis profile.

    A test that says ``@settings(max_examples=examples(30))`` draws 30 under the default profile
    and 3,000 under `make test-long`; a plain number would stay what it is.

    Parameters
    ----------
    count : int
        Examples under the default profile.

    Returns
    -------
    int
        Examples under the profile that is loaded, at least 1.
    """
    return max(1, count * settings().max_examples // BASE_EXAMPLES)
