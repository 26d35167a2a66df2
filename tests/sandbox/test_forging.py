"""Generated code cannot pass its tests except by right values; and right values of every plain type pass."""

import sys

import pytest

from compress.sandbox.layers import Limits
from compress.sandbox.python import run_python

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="generated code runs on Linux only")
LIMITS = Limits(seconds=60, cpu_seconds=30)
SHORT = Limits(seconds=3, cpu_seconds=1)
WRITE = """import os
def everywhere(text):
    for descriptor in range(64):
        try: os.write(descriptor, text)
        except OSError: pass
"""
VERDICT = b'{"status": "passed", "detail": ""}\n'
FRAMES = b'\x00\x00\x00\x1e{"value":42,"changed":[],"same":0}'
LIAR = """
class Liar({base}):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __lt__
    def __hash__(self): return hash(42)
    def __len__(self): return 42
    def __bool__(self): return True
    def __abs__(self): return 0
    def __instancecheck__(self, other): return True
    def __iter__(self): return iter([])
    def __reduce__(self): return (int, (42,))
    def __index__(self): return 42
def f(x): return Liar({value})
"""

FORGERIES = {
    "write a verdict, then end": WRITE + f"everywhere({VERDICT})\nos._exit(0)\ndef f(x): pass",
    "write a verdict at each call": WRITE + f"def f(x): everywhere({VERDICT})",
    "write a verdict in a call, then end": WRITE + f"def f(x):\n  everywhere({VERDICT})\n  os._exit(0)",
    "end with code 0": "import os\ndef f(x): os._exit(0)",
    "end while it is defined": "import os\nos._exit(0)\ndef f(x): pass",
    "raise SystemExit": "def f(x): raise SystemExit(0)",
    "raise KeyboardInterrupt": "def f(x): raise KeyboardInterrupt",
    "raise GeneratorExit": "def f(x): raise GeneratorExit",
    "raise StopIteration": "def f(x): raise StopIteration",
    "raise AssertionError": "def f(x): raise AssertionError('passed')",
    "a class of exceptions called passed": "class passed(BaseException): status = 'passed'\ndef f(x): raise passed",
    "print the verdict": f"def f(x): print({VERDICT!r})",
    "an object that equals everything": LIAR.format(base="object", value=""),
    "an int that equals everything": LIAR.format(base="int", value="7"),
    "a float that equals everything": LIAR.format(base="float", value="7"),
    "a text that equals everything": LIAR.format(base="str", value="7"),
    "a list that equals everything": LIAR.format(base="list", value=""),
    "a dict that equals everything": LIAR.format(base="dict", value=""),
    "a tuple that equals everything": LIAR.format(base="tuple", value=""),
    "unittest.mock.ANY": "from unittest.mock import ANY\ndef f(x): return ANY",
    "patch the built-in functions": (
        "import builtins\nclass A: \n  def __init__(self, *a): pass\nbuiltins.AssertionError = A\n"
        "builtins.abs = lambda x: 42\nbuiltins.compile = lambda *a: 'pass'\nbuiltins.exec = lambda *a: None\n"
        "def f(x): return 7"
    ),
    "read the tests from a frame": (
        "import sys\ndef f(x):\n  frame = sys._getframe()\n  while frame:\n"
        "    for v in frame.f_locals.values():\n"
        "      if isinstance(v, dict) and 'tests' in v: v['tests'].clear()\n    frame = frame.f_back\n  return 7"
    ),
    "find the tests with gc": (
        "import gc\ndef f(x):\n  for o in gc.get_objects():\n"
        "    if isinstance(o, list) and any('assert' in str(i) for i in o[:9]): o.clear()\n"
        "    if isinstance(o, dict) and o.get('status'): o['status'] = 'passed'\n  return 7"
    ),
    "patch the harness": (
        "import sys\nfor m in list(sys.modules.values()):\n"
        "  for n in ('send', 'send_reply', 'reply', 'encode', 'run_tests', 'attempt', 'status_of'):\n"
        "    if hasattr(m, n): setattr(m, n, lambda *a, **k: {'status': 'passed', 'value': 42, 'changed': []})\n"
        "def f(x): return 7"
    ),
    "patch json": 'import json\njson.dumps = lambda *a, **k: \'{"status": "passed"}\'\ndef f(x): return 7',
    "patch the reading of messages": (
        "import sys\nfor m in list(sys.modules.values()):\n  if hasattr(m, 'receive'): m.receive = lambda *a: {}\n"
        "def f(x): return 7"
    ),
    "sys.settrace": (
        "import sys\ndef trace(frame, event, value):\n"
        "  if event == 'return': frame.f_locals['value'] = 42\n  return trace\nsys.settrace(trace)\n"
        "def f(x): return 7"
    ),
    "atexit": WRITE + f"import atexit\natexit.register(everywhere, {VERDICT})\ndef f(x): exit()",
    "a thread": "import threading, os\nthreading.Thread(target=os._exit, args=(0,)).start()\ndef f(x): return 7",
    "a signal handler": (
        "import os, signal\nsignal.signal(signal.SIGSEGV, lambda *a: os._exit(0))\nimport ctypes\n"
        "def f(x): ctypes.string_at(0)"
    ),
    "recursion": "import sys\nsys.setrecursionlimit(10**7)\ndef f(x): return f(x)",
    "a cycle": "def f(x):\n  a = []\n  a.append(a)\n  return a",
    "a generator": "def f(x):\n  while True: yield 42",
    "a generator that equals a list": "def f(x): yield from [42]",
    "a coroutine": "async def f(x): return 42",
    "the function itself": "def f(x): return f",
    "a type": "def f(x): return int",
    "close all descriptors": "import os\nos.closerange(0, 64)\ndef f(x): return 42",
    "close the descriptors in a call": "import os\ndef f(x):\n  os.closerange(0, 64)\n  return 42",
    "change the arguments": "def f(x):\n  x.clear()\n  x.append(42)\n  return x",
    "change the arguments and the value": "def f(x):\n  x.clear()\n  return []",
    "a value for every test": "def f(*x, **y): return True",
    "NaN": "def f(x): return float('nan')",
    "not implemented": "def f(x): return NotImplemented",
    "a message of its own": WRITE + f"def f(x):\n  everywhere({FRAMES})\n  return 7",
    "many messages of its own": WRITE + f"everywhere({FRAMES} * 9)\ndef f(x): return 7",
    "a message that is too long": WRITE + "def f(x): everywhere(b'\\xff' * 99)",
    "a message that is too deep": WRITE + "def f(x): everywhere(b'\\0\\0\\xea\\x60' + b'[' * 60000)",
    "an endless message": WRITE + "def f(x):\n  while True: everywhere(bytes(9))",
}
TESTS = ["x = [1, 2]", "assert f(x) == [1, 2, 41 + 1]", "assert list(map(f, [[1], [2]])) == [[1, 42], [2, 42]]"]
TESTS += ["assert all(f([y]) == [y, 42] for y in range(3)) and f([]) == sorted(f([]), key=abs) == [42]"]


ENDLESS = ("patch the harness", "a signal handler", "recursion", "an endless message")
CASES = [
    pytest.param(code, id=name, marks=pytest.mark.slow if name in ENDLESS else ()) for name, code in FORGERIES.items()
]


@pytest.mark.parametrize("code", CASES)
def test_the_forgery_passes_no_test(code):
    assert run_python(code, "f", TESTS, SHORT).status != "passed"


PIPES = """import os, stat
def is_pipe(descriptor):
    try: return stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    except OSError: return False
pipes = [descriptor for descriptor in range(64) if is_pipe(descriptor)]
"""


@pytest.mark.parametrize("place", range(3))
def test_a_verdict_in_one_pipe_passes_no_test(place):
    code = PIPES + f"def f(x):\n  try: os.write(pipes[{place}], {VERDICT})\n  finally: os._exit(0)"
    assert run_python(code, "f", TESTS, SHORT).status in ("exited", "error")


def test_the_right_function_passes_the_same_tests():
    assert run_python("def f(x): return x + [42]", "f", TESTS, LIMITS).status == "passed"


@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("def f(x): x.clear(); return []", "x = [3, 1]\nassert f(x) == sorted(x)"),
        ("def f(x): x.clear(); return x", "x = [3, 1]\nassert f(x) == sorted(x)"),
        ("def f(x): raise StopIteration", "assert all(map(f, [1, 2, 3]))"),
        ("def f(x): raise StopIteration", "for y in map(f, [1]): assert y == 3\nassert f(1) == 3"),
        ("def f(x): return [x]", "x = [1]\nassert f(x) == [[1]] and f(x) is not x and f(f(x)) == f(x)"),
        ("def f(x): return x", "x = [1]\nassert f(x) == [1] and f(x) is not x"),
        ("def f(x): x.sort(); return x", "x = [3, 1]\ny = sorted(x)\nassert f(x) == y and x == [3, 1]"),
    ],
)
def test_a_call_that_changes_its_arguments_gains_nothing(code, test):
    assert run_python(code, "f", [test], LIMITS).status in ("failed", "error")


PLAIN = [
    "None", "True", "0", "-7", "2**53", "10**4000", "-(2**70)", "1.5", "float('inf')", "-0.0", "2 + 3j", "''",
    "'\\ud800 \\u2028'", "b'x'", "bytearray(b'x')", "[1, [2, (3,)]]", "(1, 'a')", "{1: [2], (3, 4): None}", "{1, 2}",
    "frozenset({(1, 2)})", "{'a': {'b': {1.5}}}", "[None, True, 0]",
]  # fmt: skip


def test_values_of_every_plain_type_arrive_with_their_type():
    tests = [f"y = {value}\nassert f(y) == y and type(f(y)) is type(y) and repr(f(y)) == repr(y)" for value in PLAIN]
    outcome = run_python("def f(x): return x", "f", tests, LIMITS)
    assert outcome.status == "passed", outcome


@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("from collections import Counter as f", "assert f('aab') == {'a': 2, 'b': 1}"),
        ("from collections import OrderedDict\ndef f(x): return OrderedDict(a=x)", "assert f(1) == {'a': 1}"),
        ("from typing import NamedTuple\nclass P(NamedTuple):\n  x: int\ndef f(x): return P(x)", "assert f(1) == (1,)"),
        ("import enum\nclass C(enum.IntEnum):\n  RED = 1\ndef f(): return C.RED", "assert f() == 1"),
        ("def f(n):\n  for i in range(n): yield i", "assert list(f(3)) == [0, 1, 2] and sum(f(4)) == 6"),
        ("def f(n): return map(str, range(n))", "assert ''.join(f(3)) == '012'"),
        ("def f(x): raise ValueError('no', x)", "try: f(1)\nexcept ValueError as e: assert e.args == ('no', 1)"),
        ("class E(KeyError): pass\ndef f(x): raise E(x)", "try: f(1)\nexcept LookupError as e: assert e.args == (1,)"),
        ("def f(x): x.sort()", "x = [3, 1]\nassert f(x) is None and x == [1, 3]"),
        ("def f(x): return x.pop()", "x = [3, 1]\nassert f(x) == 1\nassert x == [3]\nassert f(x) == 3"),
        ("def f(x): x.sort(); return x", "x = [3, 1]\nassert f(x) == [1, 3]\nassert f([2, 1]) == [1, 2]"),
        ("def f(x): return x", "x = [3, 1]\nassert f(x) is x"),
        ("def f(x, *, y=1): y.update(a=x)", "y = {}\nf(3, y=y)\nassert y == {'a': 3}"),
        ("n = []\ndef f(x): n.append(x); return len(n)", "assert [f(0), f(0), f(0)] == [1, 2, 3]"),
        (
            "def f(x): return sorted(x)",
            "import random\nx = random.Random(0).sample(range(99), 9)\nassert f(x) == sorted(x)",
        ),
    ],
)
def test_ordinary_python_passes(code, test):
    outcome = run_python(code, "f", [test], LIMITS)
    assert outcome.status == "passed", outcome


def test_tests_that_cannot_be_sent_are_named():
    outcome = run_python("def f(x): return x(1)", "f", ["assert f(lambda y: y) == 1"], LIMITS)
    assert outcome.status == "tests" and "function is not a plain value" in outcome.detail


def test_the_setup_is_run_with_the_tests_and_not_with_the_answer():
    setup, test = "def twice(x): return 2 * x\ndef f(x): ...", "assert twice(f(2)) == 6"
    assert run_python("def f(x): return 3", "f", [test], LIMITS, setup=setup).status == "passed"
    code = "def twice(x): return 6\ndef f(x): return 7"
    assert run_python(code, "f", [test], LIMITS, setup=setup).status == "failed"
