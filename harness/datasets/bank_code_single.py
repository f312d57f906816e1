"""Single coding tasks: name, signature, what to return, a reference, and example arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

SingleTask = tuple[str, str, str, Callable[..., Any], tuple[tuple[Any, ...], ...]]


def _collatz_steps(n: int) -> int:
    steps = 0
    while n != 1:
        n, steps = (n // 2 if n % 2 == 0 else 3 * n + 1), steps + 1
    return steps


def _roman(numeral: str) -> int:
    values = [{"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}[c] for c in numeral]
    return sum(-v if any(w > v for w in values[i + 1 : i + 2]) else v for i, v in enumerate(values))


def _run_lengths(text: str) -> list[tuple[str, int]]:
    runs: list[tuple[str, int]] = []
    for char in text:
        runs = [*runs[:-1], (char, runs[-1][1] + 1)] if runs and runs[-1][0] == char else [*runs, (char, 1)]
    return runs


def _merge(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(spans):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def _binary_search(numbers: list[int], wanted: int) -> int:
    return numbers.index(wanted) if wanted in numbers else -1


def _flatten(nested: list[Any]) -> list[Any]:
    return [leaf for item in nested for leaf in (_flatten(item) if isinstance(item, list) else [item])]


def _pascal_row(n: int) -> list[int]:
    return [math.comb(n, i) for i in range(n + 1)]


def _sieve(n: int) -> list[int]:
    return [p for p in range(2, n) if all(p % d for d in range(2, math.isqrt(p) + 1))]


def _depth(nested: Any) -> int:
    return 1 + max((_depth(i) for i in nested), default=0) if isinstance(nested, list) else 0


def _greedy(total: int, coins: list[int]) -> list[tuple[int, int]]:
    uses = []
    for coin in sorted(coins, reverse=True):
        uses.append((coin, total // coin))
        total %= coin
    return uses


def _run_lengths_of(values: list[bool]) -> list[tuple[bool, int]]:
    return [(char == "T", n) for char, n in _run_lengths("".join("T" if v else "F" for v in values))]


SINGLE_TASKS: tuple[SingleTask, ...] = (
    ("is_leap_year", "(year: int) -> bool", "True when the year is a leap year in the Gregorian calendar, otherwise False",
     lambda y: y % 4 == 0 and (y % 100 != 0 or y % 400 == 0), ((2024,), (1900,), (2000,))),
    ("celsius_to_fahrenheit", "(celsius: float) -> float", "the temperature in degrees Fahrenheit, rounded to one decimal",
     lambda c: round(c * 9 / 5 + 32, 1), ((20.0,), (-40.0,))),
    ("seconds_to_clock", "(seconds: int) -> str", "the duration as a string 'H:MM:SS', minutes and seconds padded to two digits",
     lambda s: f"{s // 3600}:{s % 3600 // 60:02d}:{s % 60:02d}", ((3725,), (59,))),
    ("clock_to_minutes", "(clock: str) -> int", "the number of minutes since midnight for a time written 'HH:MM'",
     lambda t: int(t[:2]) * 60 + int(t[3:]), (("07:30",), ("23:59",))),
    ("collatz_steps", "(n: int) -> int", "how many steps the Collatz sequence takes from n to 1", _collatz_steps, ((6,), (1,))),
    ("roman_to_int", "(numeral: str) -> int", "the integer value of a valid Roman numeral in upper case", _roman, (("XIV",), ("MCMXC",))),
    ("run_lengths", "(text: str) -> list[tuple[str, int]]", "a list of (character, length) pairs, one for each run of equal characters",
     _run_lengths, (("aabccc",), ("",))),
    ("expand_runs", "(runs: list[tuple[str, int]]) -> str", "the string in which each character is repeated as often as its pair says",
     lambda r: "".join(c * n for c, n in r), (([("x", 3), ("y", 1)],),)),
    ("merge_intervals", "(spans: list[tuple[int, int]]) -> list[tuple[int, int]]",
     "the sorted list of intervals after merging all that overlap or touch", _merge, (([(1, 4), (3, 6), (8, 9)],), ([],))),
    ("binary_search", "(numbers: list[int], wanted: int) -> int",
     "the index of wanted in a sorted list without repeats, or -1 when it is absent",
     _binary_search, (([2, 5, 8, 13], 8), ([2, 5], 4))),
    ("flatten", "(nested: list) -> list", "a flat list of all values in an arbitrarily nested list, from left to right",
     _flatten, (([1, [2, [3, 4]], 5],), ([],))),
    ("nesting_depth", "(nested: list) -> int", "how many levels of lists are nested; a flat list has depth 1", _depth,
     (([1, [2, [3]]],), ([],))),
    ("pascal_row", "(n: int) -> list[int]", "row n of Pascal's triangle, where row 0 is [1]", _pascal_row, ((4,), (0,))),
    ("primes_below", "(n: int) -> list[int]", "all prime numbers smaller than n in ascending order", _sieve, ((20,), (2,))),
    ("transpose", "(grid: list[list[int]]) -> list[list[int]]", "the transpose of a rectangular grid given as a list of rows",
     lambda g: [list(c) for c in zip(*g, strict=True)], (([[1, 2, 3], [4, 5, 6]],),)),
    ("rotate_clockwise", "(grid: list[list[int]]) -> list[list[int]]", "the grid turned by 90 degrees clockwise",
     lambda g: [list(c) for c in zip(*g[::-1], strict=True)], (([[1, 2], [3, 4]],),)),
    ("row_sums", "(grid: list[list[int]]) -> list[int]", "the sum of each row of the grid", lambda g: [sum(r) for r in g],
     (([[1, 2], [3, 4]],),)),
    ("column_maxima", "(grid: list[list[int]]) -> list[int]", "the largest value of each column of a rectangular grid",
     lambda g: [max(c) for c in zip(*g, strict=True)], (([[1, 9], [3, 4]],),)),
    ("diagonal_sum", "(grid: list[list[int]]) -> int", "the sum of the main diagonal of a square grid",
     lambda g: sum(g[i][i] for i in range(len(g))), (([[1, 2], [3, 4]],),)),
    ("count_neighbours", "(grid: list[list[int]], row: int, col: int) -> int",
     "how many of the up to eight neighbours of the cell (row, col) are 1 in a grid of zeros and ones",
     lambda g, r, c: sum(g[i][j] for i in range(max(r - 1, 0), min(r + 2, len(g))) for j in range(max(c - 1, 0), min(c + 2,
     len(g[0])))) - g[r][c],
     (([[1, 0, 1], [0, 1, 0], [1, 0, 0]], 1, 1),)),
    ("invert_dict", "(mapping: dict[str, int]) -> dict[int, list[str]]", "a dict from each value to the sorted list of keys that have it",
     lambda m: {v: sorted(k for k in m if m[k] == v) for v in m.values()}, (({"a": 1, "b": 2, "c": 1},),)),
    ("merge_counts", "(first: dict[str, int], second: dict[str, int]) -> dict[str, int]",
     "one dict in which the counts of both dicts are added",
     lambda a, b: {k: a.get(k, 0) + b.get(k, 0) for k in {**a, **b}}, (({"x": 1}, {"x": 2, "y": 5}),)),
    ("keys_above", "(scores: dict[str, int], limit: int) -> list[str]", "the keys whose value is greater than limit, in alphabetical order",
     lambda s, k: sorted(x for x in s if s[x] > k), (({"ann": 7, "bob": 3, "cy": 9}, 5),)),
    ("group_by_length", "(words: list[str]) -> dict[int, list[str]]",
     "a dict from word length to the list of words of that length, in order",
     lambda w: {n: [x for x in w if len(x) == n] for n in dict.fromkeys(map(len, w))}, ((["an", "owl", "is", "here"],),)),
    ("group_by_initial", "(words: list[str]) -> dict[str, list[str]]", "a dict from first letter to the words that start with it, in order",
     lambda w: {c: [x for x in w if x[0] == c] for c in dict.fromkeys(x[0] for x in w)}, ((["bee", "ant", "bat"],),)),
    ("chunk", "(items: list, size: int) -> list[list]",
     "the items split into consecutive lists of the given size; the last one may be shorter",
     lambda x, n: [x[i : i + n] for i in range(0, len(x), n)], (([1, 2, 3, 4, 5], 2),)),
    ("rotate_left", "(items: list, steps: int) -> list",
     "the list rotated to the left by the given number of steps, which may exceed its length",
     lambda x, n: x[n % len(x) :] + x[: n % len(x)] if x else [], (([1, 2, 3, 4], 1), ([1, 2, 3], 5))),
    ("interleave", "(first: list, second: list) -> list",
     "a list that takes items from both lists in turn and then appends what is left of the longer one",
     lambda a, b: [x for i in range(max(len(a), len(b))) for x in (*a[i : i + 1], *b[i : i + 1])], (([1, 3, 5], [2, 4]),)),
    ("moving_average", "(values: list[float], width: int) -> list[float]",
     "the averages, rounded to two decimals, of each window of the given width",
     lambda v, w: [round(sum(v[i : i + w]) / w, 2) for i in range(len(v) - w + 1)], (([1.0, 2.0, 6.0, 3.0], 2),)),
    ("dot_product", "(first: list[int], second: list[int]) -> int", "the dot product of two lists of the same length",
     lambda a, b: sum(x * y for x, y in zip(a, b, strict=True)), (([1, 2, 3], [4, 5, 6]),)),
    ("manhattan_distance", "(first: tuple[int, int], second: tuple[int, int]) -> int", "the Manhattan distance between two grid points",
     lambda a, b: abs(a[0] - b[0]) + abs(a[1] - b[1]), (((1, 2), (4, -2)),)),
    ("least_common_multiple", "(a: int, b: int) -> int", "the least common multiple of two positive integers",
     lambda a, b: a * b // math.gcd(a, b), ((4, 6),)),
    ("digital_root", "(n: int) -> int", "the single digit reached by summing the decimal digits of n again and again",
     lambda n: 1 + (n - 1) % 9 if n else 0, ((9875,), (0,))),
    ("is_perfect_number", "(n: int) -> bool", "True when the proper divisors of n add up to n, otherwise False",
     lambda n: n > 1 and sum(d for d in range(1, n) if n % d == 0) == n, ((28,), (12,))),
    ("divisors", "(n: int) -> list[int]", "all positive divisors of n in ascending order",
     lambda n: [d for d in range(1, n + 1) if n % d == 0], ((12,), (1,))),
    ("count_digit", "(number: int, digit: int) -> int", "how often the digit appears in the decimal form of a non-negative number",
     lambda n, d: str(n).count(str(d)), ((12212, 2),)),
    ("to_base", "(number: int, base: int) -> list[int]",
     "the digits, most significant first, of a positive number written in the given base",
     lambda n, b: [n // b**i % b for i in range(int(math.log(n, b) + 1e-9), -1, -1)], ((10, 2), (255, 16))),
    ("triangle_kind", "(a: int, b: int, c: int) -> str", "'equilateral', 'isosceles' or 'scalene' for a triangle with these side lengths",
     lambda a, b, c: {1: "equilateral", 2: "isosceles", 3: "scalene"}[len({a, b, c})], ((3, 3, 5), (2, 3, 4))),
    ("compound_balance", "(start: float, rate: float, years: int) -> float",
     "the balance after the given years at a yearly interest rate (0.05 means five percent), rounded to two decimals",
     lambda s, r, y: round(s * (1 + r) ** y, 2), ((1000.0, 0.05, 2),)),
    ("split_bill", "(total_cents: int, people: int) -> list[int]",
     "shares in cents that add up to the total and differ by at most one cent, larger ones first",
     lambda t, p: [t // p + (i < t % p) for i in range(p)], ((1000, 3),)),
    ("make_change", "(cents: int, coins: list[int]) -> dict[int, int]",
     "how many of each coin the greedy method uses, largest coin first, leaving out unused coins",
     lambda t, cs: {c: n for c, n in _greedy(t, cs) if n}, ((67, [50, 20, 10, 5, 2, 1]),)),
    ("is_anagram", "(first: str, second: str) -> bool",
     "True when both strings use the same letters equally often, ignoring case and spaces",
     lambda a, b: sorted(a.lower().replace(" ", "")) == sorted(b.lower().replace(" ", "")), (("Listen", "Silent"), ("abc", "abd"))),
    ("is_pangram", "(sentence: str) -> bool", "True when the sentence contains every letter from a to z at least once, otherwise False",
     lambda s: set("abcdefghijklmnopqrstuvwxyz") <= set(s.lower()), (("The quick brown fox jumps over the lazy dog",), ("hello",))),
    ("caesar_shift", "(text: str, key: int) -> str",
     "the text with each lower-case letter moved forward by key places, wrapping at z; the rest stays",
     lambda t, k: "".join(chr((ord(c) - 97 + k) % 26 + 97) if "a" <= c <= "z" else c for c in t), (("xyz!", 3),)),
    ("camel_to_snake", "(name: str) -> str", "a camelCase name in snake_case",
     lambda n: "".join(f"_{c.lower()}" if c.isupper() else c for c in n), (("maxRetryCount",), ("size",))),
    ("snake_to_camel", "(name: str) -> str", "a snake_case name in camelCase",
     lambda n: n.split("_")[0] + "".join(p.title() for p in n.split("_")[1:]), (("max_retry_count",),)),
    ("acronym", "(phrase: str) -> str", "the upper-case initials of all words in the phrase",
     lambda p: "".join(w[0].upper() for w in p.split()), (("random access memory",),)),
    ("truncate", "(text: str, width: int) -> str",
     "the text unchanged when it fits in width characters, otherwise cut so that it ends in '...' and has exactly that width",
     lambda t, w: t if len(t) <= w else t[: w - 3] + "...", (("a long sentence", 10), ("short", 10))),
    ("center_in_stars", "(text: str, width: int) -> str", "the text centred between '*' characters in a string of the given width",
     lambda t, w: t.center(w, "*"), (("hi", 6),)),
    ("char_positions", "(text: str) -> dict[str, list[int]]", "a dict from each character to the list of its indices",
     lambda t: {c: [i for i, d in enumerate(t) if d == c] for c in dict.fromkeys(t)}, (("noon",),)),
    ("first_unique_char", "(text: str) -> str | None", "the first character that occurs exactly once, or None",
     lambda t: next((c for c in t if t.count(c) == 1), None), (("swiss",), ("aabb",))),
    ("hamming_distance", "(first: str, second: str) -> int", "at how many positions two strings of equal length differ",
     lambda a, b: sum(x != y for x, y in zip(a, b, strict=True)), (("karolin", "kathrin"),)),
    ("longest_common_prefix", "(words: list[str]) -> str", "the longest prefix shared by all words, or '' for an empty list",
     lambda w: "" if not w else max((w[0][:i] for i in range(len(w[0]) + 1) if all(x.startswith(w[0][:i]) for x in w)), key=len),
     ((["flower", "flow", "flight"],), ([],))),
    ("parse_pairs", "(text: str) -> dict[str, str]", "a dict built from text such as 'a=1;b=2', with surrounding spaces removed",
     lambda t: {p.split("=")[0].strip(): p.split("=")[1].strip() for p in t.split(";") if p.strip()}, (("host = a1; port=80",),)),
    ("parse_csv_line", "(line: str) -> list[str]", "the comma-separated fields of a line, stripped of surrounding spaces",
     lambda t: [f.strip() for f in t.split(",")], (("red, green ,blue",),)),
    ("query_string", "(params: dict[str, str]) -> str", "the parameters as 'key=value' pairs joined by '&', sorted by key",
     lambda p: "&".join(f"{k}={p[k]}" for k in sorted(p)), (({"page": "2", "lang": "en"},),)),
    ("mask_card", "(number: str) -> str", "the card number with all but its last four digits replaced by '#'",
     lambda n: "#" * (len(n) - 4) + n[-4:], (("4111222233334444",),)),
    ("is_valid_hex_colour", "(text: str) -> bool", "True when the text is '#' followed by exactly six hexadecimal digits",
     lambda t: len(t) == 7 and t[0] == "#" and all(c in "0123456789abcdefABCDEF" for c in t[1:]), (("#1a2B3c",), ("#12",))),
    ("rgb_to_hex", "(red: int, green: int, blue: int) -> str", "the colour as a lower-case string such as '#ff8000'",
     lambda r, g, b: f"#{r:02x}{g:02x}{b:02x}", ((255, 128, 0),)),
    ("password_problems", "(password: str) -> list[str]",
     "a list with 'short' (under eight characters), 'no digit' and 'no capital', each only when it applies, in this order",
     lambda p: [m for m, bad in (("short", len(p) < 8), ("no digit", not any(c.isdigit() for c in p)), ("no capital", p == p.lower()))
     if bad], (("secret",), ("Secret123",))),
    ("score_hand", "(cards: list[str]) -> int",
     "the points of a hand where 'A' is 11, 'K', 'Q', 'J' are 10 and number cards count their value",
     lambda h: sum({"A": 11, "K": 10, "Q": 10, "J": 10}.get(c) or int(c) for c in h), ((["A", "7", "Q"],),)),
    ("balance_after", "(start: int, moves: list[tuple[str, int]]) -> int",
     "the balance after applying moves ('in', amount) or ('out', amount) in order",
     lambda s, m: s + sum(a if k == "in" else -a for k, a in m), ((100, [("in", 50), ("out", 30)]),)),
    ("walk", "(moves: str) -> tuple[int, int]", "the final (x, y) position after walking from (0, 0), where U, D, L and R are single steps",
     lambda m: (m.count("R") - m.count("L"), m.count("U") - m.count("D")), (("RRUL",), ("",))),
    ("common_items", "(first: list[int], second: list[int]) -> list[int]",
     "the items of the first list that also occur in the second, without repeats, in order",
     lambda a, b: [x for x in dict.fromkeys(a) if x in b], (([1, 2, 2, 3], [3, 2, 9]),)),
    ("second_largest", "(numbers: list[int]) -> int | None",
     "the second largest distinct number, or None when there are fewer than two distinct numbers",
     lambda v: sorted(set(v))[-2] if len(set(v)) > 1 else None, (([4, 9, 9, 7],), ([5, 5],))),
    ("longest_streak", "(days: list[bool]) -> int", "the length of the longest run of True values",
     lambda d: max((n for v, n in _run_lengths_of(d) if v), default=0),
     (([True, True, False, True],), ([False],))),
    ("peak_indices", "(heights: list[int]) -> list[int]", "the indices, ends excluded, whose value is greater than both neighbours",
     lambda h: [i for i in range(1, len(h) - 1) if h[i - 1] < h[i] > h[i + 1]], (([1, 5, 2, 7, 3],),)),
    ("missing_numbers", "(numbers: list[int]) -> list[int]",
     "the whole numbers between the smallest and the largest value that do not occur",
     lambda v: [n for n in range(min(v), max(v)) if n not in v], (([3, 7, 5],),)),
    ("pairs_with_difference", "(numbers: list[int], gap: int) -> int",
     "how many pairs of positions i < j have values that differ by exactly gap",
     lambda v, g: sum(abs(v[i] - v[j]) == g for i in range(len(v)) for j in range(i + 1, len(v))), (([1, 5, 3, 4], 2),)),
    ("partition", "(numbers: list[int], pivot: int) -> tuple[list[int], list[int]]",
     "two lists: the numbers below the pivot and the others, each in order",
     lambda v, p: ([n for n in v if n < p], [n for n in v if n >= p]), (([5, 1, 8, 3], 4),)),
    ("weighted_mean", "(values: list[float], weights: list[float]) -> float", "the weighted mean, rounded to two decimals",
     lambda v, w: round(sum(a * b for a, b in zip(v, w, strict=True)) / sum(w), 2), (([80.0, 90.0], [1.0, 3.0]),)),
    ("clamp_all", "(values: list[int], low: int, high: int) -> list[int]", "the values, each limited to the range from low to high",
     lambda v, a, b: [min(max(n, a), b) for n in v], (([-3, 5, 99], 0, 10),)),
    ("reverse_words", "(sentence: str) -> str", "the words of the sentence in reverse order, separated by one space",
     lambda s: " ".join(s.split()[::-1]), (("to be  or not",),)),
    ("count_lines_with", "(lines: list[str], word: str) -> int", "how many of the lines contain the word, ignoring case",
     lambda lines, w: sum(w.lower() in line.lower() for line in lines), ((["Error a", "ok", "error b"], "error"),)),
    ("version_is_newer", "(first: str, second: str) -> bool",
     "True when the first version such as '1.10.2' is newer than the second, compared number by number",
     lambda a, b: [int(x) for x in a.split(".")] > [int(x) for x in b.split(".")], (("1.10.0", "1.9.3"),)),
    ("file_extension", "(filename: str) -> str", "the part after the last dot in lower case, or '' when there is no dot",
     lambda f: f.rsplit(".", 1)[1].lower() if "." in f else "", (("photo.JPG",), ("README",))),
)  # fmt: skip
