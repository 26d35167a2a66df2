"""The bundled suite: enough items in both languages, all solvable, and expected answers score 1."""

import json
from collections import Counter
from typing import Any

import pytest

from compress.evaluate.tasks.item import score_item
from compress.evaluate.tasks.suite import KINDS, load_suite, select

SUITE = load_suite()
BY_KIND = {kind: [item for item in SUITE.items if item.kind == kind] for kind in KINDS}
SOLUTIONS = {
    "add": "def add(a, b): return a + b",
    "double": "def double(x): return 2 * x",
    "is_even": "def is_even(n): return n % 2 == 0",
    "square": "def square(x): return x * x",
    "largest": "largest = max",
    "reverse": "def reverse(text): return text[::-1]",
    "total": "total = sum",
    "greet": "def greet(name): return f'Hello, {name}!'",
    "count_vowels": "def count_vowels(text): return sum(c in 'aeiou' for c in text.lower())",
    "factorial": "from math import factorial",
    "first_word": "def first_word(text): return (text.split() or [''])[0]",
    "evens": "def evens(numbers): return [n for n in numbers if n % 2 == 0]",
    "mean": "def mean(numbers): return sum(numbers) / len(numbers)",
    "is_palindrome": "def is_palindrome(text): return text.lower() == text.lower()[::-1]",
    "celsius": "def celsius(f): return (f - 32) * 5 / 9",
    "word_count": "def word_count(text): return len(text.split())",
    "fibonacci": "def fibonacci(n): return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)",
    "is_prime": "def is_prime(n): return n > 1 and all(n % d for d in range(2, n))",
    "unique": "def unique(items): return list(dict.fromkeys(items))",
    "gcd": "from math import gcd",
    "fizzbuzz": "def fizzbuzz(n): return 'Fizz' * (n % 3 == 0) + 'Buzz' * (n % 5 == 0) or str(n)",
    "count_letters": "def count_letters(text): return {c: text.count(c) for c in text}",
    "second_largest": "def second_largest(numbers): return sorted(set(numbers))[-2]",
    "flatten": "def flatten(lists): return [x for part in lists for x in part]",
    "caesar": "def caesar(t, s): return ''.join(chr((ord(c) - 97 + s) % 26 + 97) if 'a' <= c <= 'z' else c for c in t)",
    "binary": "def binary(n): return f'{n:b}'",
    "balanced": (
        "def balanced(text):\n  while any(p in text for p in ('()', '[]', '{}')):\n"
        "    for p in ('()', '[]', '{}'): text = text.replace(p, '')\n  return text == ''"
    ),
    "merge": "def merge(a, b): return sorted(a + b)",
    "roman": (
        "def roman(n):\n  out = ''\n  for v, s in ((1000,'M'),(900,'CM'),(500,'D'),(400,'CD'),(100,'C'),(90,'XC'),"
        "(50,'L'),(40,'XL'),(10,'X'),(9,'IX'),(5,'V'),(4,'IV'),(1,'I')):\n"
        "    out, n = out + s * (n // v), n % v\n  return out"
    ),
    "longest_run": (
        "from itertools import groupby\n"
        "def longest_run(x): return max((len(list(g)) for _, g in groupby(x)), default=0)"
    ),
    "subtract": "def subtract(a, b): return a - b",
    "triple": "def triple(x): return 3 * x",
    "is_odd": "def is_odd(n): return n % 2 == 1",
    "cube": "def cube(x): return x ** 3",
    "smallest": "smallest = min",
    "shout": "shout = str.upper",
    "product": "from math import prod as product",
    "absolute": "absolute = abs",
    "area": "def area(w, h): return w * h",
    "last": "def last(items): return items[-1] if items else None",
    "squares": "def squares(n): return [i * i for i in range(1, n + 1)]",
    "join_words": "join_words = ' '.join",
    "positives": "def positives(numbers): return [n for n in numbers if n > 0]",
    "digit_sum": "def digit_sum(n): return sum(map(int, str(n)))",
    "is_leap": "from calendar import isleap as is_leap",
    "count": "count = list.count",
    "remove_spaces": "def remove_spaces(text): return text.replace(' ', '')",
    "sort_desc": "def sort_desc(numbers): return sorted(numbers, reverse=True)",
    "power": "power = pow",
    "common": "def common(a, b): return sorted({*a} & {*b})",
    "lcm": "from math import lcm",
    "swap": "def swap(mapping): return {v: k for k, v in mapping.items()}",
    "longest_word": "def longest_word(text): return max(text.split(), key=len)",
    "transpose": "def transpose(matrix): return [list(row) for row in zip(*matrix)]",
    "primes": "def primes(n): return [p for p in range(2, n) if all(p % d for d in range(2, p))]",
    "collatz": "def collatz(n): return 0 if n == 1 else 1 + collatz(n // 2 if n % 2 == 0 else 3 * n + 1)",
    "compress": (
        "from itertools import groupby\ndef compress(t): return ''.join(f'{c}{len(list(g))}' for c, g in groupby(t))"
    ),
    "search": "def search(items, value): return items.index(value) if value in items else -1",
    "group": "def group(words):\n  out = {}\n  for w in words: out.setdefault(w[0], []).append(w)\n  return out",
    "max_subarray": (
        "def max_subarray(x): return max(sum(x[i:j]) for i in range(len(x)) for j in range(i + 1, len(x) + 1))"
    ),
}


def test_every_kind_has_fifty_items_and_half_of_them_are_chinese():
    for items in BY_KIND.values():
        languages = Counter(item.language for item in items)
        assert len(items) >= 50 and languages["en"] == languages["zh"]
    assert len({item.turns for item in SUITE.items}) == len(SUITE.items)


@pytest.mark.parametrize("item", BY_KIND["python"], ids=lambda item: item.id)
def test_every_python_item_accepts_its_solution(item):
    names: dict[str, Any] = {}
    exec(SOLUTIONS[item.expected["function"]], names)
    for test in item.expected["tests"]:
        exec(test, names)
    assert f"{item.expected['function']}(" in item.turns[0]


def example(schema: dict[str, Any], path: str, values: dict[str, Any]) -> Any:
    """A value that is valid by the schema and holds the required values."""
    if path in values:
        return values[path]
    below = f"{path}." if path else ""
    if "object" in schema["type"]:
        return {key: example(part, below + key, values) for key, part in schema["properties"].items()}
    if "array" in schema["type"]:
        last = max((int(name[len(below) :].split(".")[0]) for name in values if name.startswith(below)), default=0)
        return [example(schema["items"], f"{below}{index}", values) for index in range(last + 1)]
    simple = {"string": "x", "integer": 1, "number": 1.5, "boolean": True}
    return schema.get("const") or schema.get("enum", [simple[schema["type"]]])[0]


def right_answers(item: Any) -> list[str]:
    """Correct answers to every turn."""
    expected = item.expected
    if item.kind == "json":
        return [f"Here:\n```json\n{json.dumps(example(expected['schema'], '', expected['values']))}\n```"]
    if item.kind == "math":
        return [f"So it is 3 + 4.\nAnswer: {expected['number']}"]
    if item.kind == "multi-turn":
        return [f"It is {right[0]}." if right else "Good." for right in expected["answers"]]
    return [f"It is {expected['answers'][0]}."]


@pytest.mark.parametrize("kind", ["qa", "math", "json", "multi-turn"])
def test_right_answers_score_1_and_a_wrong_answer_scores_0(kind):
    items = BY_KIND[kind]
    for item in items:
        score = score_item(KINDS[kind], item, right_answers(item))
        assert score.value == 1, (item.id, score)
    wrong = ["I do not know 987654."]
    assert not any(score_item(KINDS[kind], item, wrong * len(item.turns)).value for item in items)


def test_a_limit_takes_equally_many_items_of_each_language():
    for limit in (2, 4, 10):
        chosen = select(SUITE, limit=limit)
        assert len(chosen) == 5 * limit
        assert set(Counter((item.kind, item.language) for item in chosen).values()) == {limit // 2}
    assert {item.id for item in select(SUITE, limit=4)} <= {item.id for item in select(SUITE, limit=8)}
