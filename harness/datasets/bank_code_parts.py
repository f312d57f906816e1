"""Building blocks of composed coding tasks: what to keep, how to change it, what to return."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

IntFilter = tuple[str, str, Callable[[int, int], bool]]
"""Name part, words (``{k}`` is a limit), and the test of a number against the limit."""

LIST_FILTERS: tuple[IntFilter, ...] = (
    ("", "numbers", lambda n, k: True),
    ("even", "even numbers", lambda n, k: n % 2 == 0),
    ("odd", "odd numbers", lambda n, k: n % 2 == 1),
    ("positive", "positive numbers", lambda n, k: n > 0),
    ("negative", "negative numbers", lambda n, k: n < 0),
    ("multiples_of_{k}", "multiples of {k}", lambda n, k: n % k == 0),
    ("above_{k}", "numbers greater than {k}", lambda n, k: n > k),
    ("below_{k}", "numbers smaller than {k}", lambda n, k: n < k),
    ("two_digit", "two-digit numbers (10 to 99)", lambda n, k: 10 <= n <= 99),
    ("not_divisible_by_{k}", "numbers that are not divisible by {k}", lambda n, k: n % k != 0),
    ("within_{k}_of_zero", "numbers whose absolute value is at most {k}", lambda n, k: abs(n) <= k),
)
LIST_MAPS: tuple[tuple[str, str, Callable[[int], int]], ...] = (
    ("", "{}", lambda n: n),
    ("squares_of", "the squares of {}", lambda n: n * n),
    ("cubes_of", "the cubes of {}", lambda n: n**3),
    ("doubled", "the doubles of {}", lambda n: 2 * n),
    ("absolute", "the absolute values of {}", abs),
    ("negated", "the negated values of {}", lambda n: -n),
    ("digit_sums_of", "the digit sums (sign ignored) of {}", lambda n: sum(int(c) for c in str(abs(n)))),
    ("last_digits_of", "the last decimal digits (sign ignored) of {}", lambda n: abs(n) % 10),
    ("incremented", "the values, each increased by one, of {}", lambda n: n + 1),
)


def _mean(values: list[int]) -> float:
    return round(sum(values) / len(values), 2) if values else 0.0


def _middle(values: list[int]) -> int | None:
    return sorted(values)[len(values) // 2] if values else None


LIST_ENDS: tuple[tuple[str, str, Callable[[list[int]], Any], str], ...] = (
    ("select", "a list of {}, in their original order", list, "list[int]"),
    ("sum", "the sum of {}", sum, "int"),
    ("largest", "the largest of {}, or None when there is none", lambda v: max(v, default=None), "int | None"),
    ("smallest", "the smallest of {}, or None when there is none", lambda v: min(v, default=None), "int | None"),
    ("average", "the average of {}, rounded to two decimals, or 0.0 when there is none", _mean, "float"),
    ("sorted", "a list of {}, sorted in ascending order", sorted, "list[int]"),
    ("descending", "a list of {}, sorted in descending order", lambda v: sorted(v, reverse=True), "list[int]"),
    ("distinct", "a list of {}, without repeats and in order of first appearance", lambda v: list(dict.fromkeys(v)), "list[int]"),
    ("count_distinct", "the number of different values among {}", lambda v: len(set(v)), "int"),
    ("running_total", "the list of running totals of {}", lambda v: list(accumulate(v)), "list[int]"),
    (
        "spread",
        "the difference between the largest and the smallest of {}, or 0 when there is none",
        lambda v: max(v) - min(v) if v else 0,
        "int",
    ),
    ("reversed", "a list of {} in reverse order", lambda v: v[::-1], "list[int]"),
    ("upper_median", "the middle element after sorting {} (the upper one of two), or None when there is none", _middle, "int | None"),
    ("frequency", "a dict that counts how often each value occurs among {}", lambda v: dict(Counter(v)), "dict[int, int]"),
    (
        "steps_between",
        "the list of differences between neighbours among {}",
        lambda v: [b - a for a, b in pairwise(v)],
        "list[int]",
    ),
    (
        "first_and_last",
        "a tuple with the first and last of {}, or None when there is none",
        lambda v: (v[0], v[-1]) if v else None,
        "tuple[int, int] | None",
    ),
)

WORD_FILTERS: tuple[tuple[str, str, Callable[[str, int], bool]], ...] = (
    ("", "", lambda w, k: True),
    ("starting_with_vowel", "that start with a vowel", lambda w, k: w[0].lower() in "aeiou"),
    ("ending_with_vowel", "that end with a vowel", lambda w, k: w[-1].lower() in "aeiou"),
    ("longer_than_{k}", "with more than {k} letters", lambda w, k: len(w) > k),
    ("up_to_{k}_letters", "with at most {k} letters", lambda w, k: len(w) <= k),
    ("capitalised", "that begin with an upper-case letter", lambda w, k: w[0].isupper()),
    ("palindromic", "that read the same backwards (ignoring case)", lambda w, k: w.lower() == w.lower()[::-1]),
    ("with_e", "that contain the letter 'e'", lambda w, k: "e" in w.lower()),
    ("without_a", "that do not contain the letter 'a'", lambda w, k: "a" not in w.lower()),
    ("of_even_length", "of even length", lambda w, k: len(w) % 2 == 0),
    ("with_double_letter", "with two equal neighbouring letters", lambda w, k: any(a == b for a, b in pairwise(w))),
)
WORD_MAPS: tuple[tuple[str, str, Callable[[str], str]], ...] = (
    ("", "{}", str),
    ("upper", "{}, each in upper case", str.upper),
    ("lower", "{}, each in lower case", str.lower),
    ("mirrored", "{}, each spelled backwards", lambda w: w[::-1]),
    ("initials_of", "the first letters of {}", lambda w: w[0]),
    ("devowelled", "{}, each with all vowels removed", lambda w: "".join(c for c in w if c.lower() not in "aeiou")),
    ("masked", "{}, each with every letter after the first replaced by '*'", lambda w: w[0] + "*" * (len(w) - 1)),
    ("swapcase", "{}, each with upper and lower case swapped", str.swapcase),
)
TEXT_ENDS: tuple[tuple[str, str, Callable[[list[str]], Any], str], ...] = (
    ("select", "a list of {}", list, "list[str]"),
    ("joined", "{}, joined by hyphens into one string", "-".join, "str"),
    ("comma_separated", "{}, as one string separated by a comma and a space", ", ".join, "str"),
    ("sorted", "a list of {}, sorted alphabetically ignoring case", lambda v: sorted(v, key=str.lower), "list[str]"),
    ("longest", "the first longest string among {}, or '' when there is none", lambda v: max(v, key=len, default=""), "str"),
    ("lengths", "the list of lengths of {}", lambda v: [len(w) for w in v], "list[int]"),
    ("count_unique", "the number of different strings among {}", lambda v: len(set(v)), "int"),
    ("counts", "a dict that counts each string among {}", lambda v: dict(Counter(v)), "dict[str, int]"),
    (
        "positions",
        "a dict from each string to its first position among {}",
        lambda v: {w: v.index(w) for w in dict.fromkeys(v)},
        "dict[str, int]",
    ),
    ("reversed", "a list of {}, last one first", lambda v: v[::-1], "list[str]"),
)


@dataclass(frozen=True)
class RecordKind:
    """A kind of dict record: a text label, a text group and a whole number."""

    singular: str
    plural: str
    label: str
    group: str
    number: str
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    span: tuple[int, int]


RECORD_KINDS: tuple[RecordKind, ...] = (
    RecordKind(
        "book", "books", "title", "genre", "pages", ("Dune Road", "Salt", "Ash", "Tides", "Nine"), ("crime", "poetry", "travel"), (90, 600)
    ),
    RecordKind(
        "employee",
        "employees",
        "name",
        "team",
        "salary",
        ("Ana", "Ben", "Chen", "Dora", "Eli"),
        ("sales", "support", "legal"),
        (2100, 5200),
    ),
    RecordKind(
        "plant", "plants", "species", "room", "height", ("fern", "ficus", "aloe", "ivy", "palm"), ("kitchen", "study", "hall"), (5, 180)
    ),
    RecordKind(
        "song", "songs", "title", "artist", "seconds", ("Low", "Rain", "Gold", "Ember", "Drift"), ("Mono", "Kites", "Vale"), (120, 380)
    ),
    RecordKind("player", "players", "name", "club", "goals", ("Ito", "Roy", "Sam", "Lea", "Max"), ("North", "City", "United"), (0, 25)),
    RecordKind("parcel", "parcels", "code", "city", "grams", ("A1", "B2", "C3", "D4", "E5"), ("Oslo", "Graz", "Lyon"), (100, 5000)),
    RecordKind(
        "ticket", "tickets", "code", "status", "priority", ("T10", "T11", "T12", "T13", "T14"), ("open", "closed", "waiting"), (1, 9)
    ),
    RecordKind(
        "student", "students", "name", "course", "points", ("Zoe", "Ravi", "Kim", "Noa", "Tom"), ("art", "physics", "law"), (20, 100)
    ),
    RecordKind(
        "product",
        "products",
        "label",
        "category",
        "stock",
        ("lamp", "rug", "desk", "vase", "stool"),
        ("home", "office", "garden"),
        (0, 300),
    ),
    RecordKind("trip", "trips", "route", "driver", "km", ("R1", "R2", "R3", "R4", "R5"), ("Ola", "Pia", "Gus"), (3, 400)),
    RecordKind(
        "recipe", "recipes", "dish", "cuisine", "minutes", ("soup", "curry", "pie", "stew", "salad"), ("Thai", "Greek", "Polish"), (10, 120)
    ),
    RecordKind(
        "server", "servers", "host", "region", "requests", ("web1", "web2", "db1", "api1", "api2"), ("east", "west", "south"), (50, 9000)
    ),
)
