"""How deep JSON is nested is known before it is parsed, whatever stands in its texts and wherever it is cut."""

import json
import random
import sys
from typing import Any

import pytest

from tuneport import limits
from tuneport.limits import Depth, memory_limit, read_bytes


def depth(value: Any) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if parts is None else 1 + max(map(depth, parts), default=0)


def value(random: random.Random, levels: int) -> Any:
    kind = random.random()
    if levels == 0 or kind < 0.3:
        return random.choice(["[[", '\\"]', '{"a', "x\\\\", 1, None, "ü]", "]]]]", '"'])
    if kind < 0.6:
        return [value(random, levels - 1) for _ in range(random.randint(0, 4))]
    return {random.choice(("a", "[", '{"', "\\")) + str(i): value(random, levels - 1) for i in range(3)}


def test_depth_is_counted_exactly_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    random_ = random.Random(1)
    for _ in range(500):
        made = value(random_, 7)
        text = json.dumps(made, ensure_ascii=random_.random() < 0.5).encode()
        block = random_.randint(1, 9)
        for most, fits in ((depth(made), True), (depth(made) - 1, False)):
            monkeypatch.setattr(limits, "MAX_DEPTH", most)
            seen = Depth()
            try:
                for place in range(0, len(text), block):
                    seen.add(text[place : place + block])
            except ValueError:
                assert not fits, text
            else:
                assert fits or depth(made) == 0, text


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")
def test_memory_is_limited_while_it_is_asked_for() -> None:
    with pytest.raises(MemoryError), memory_limit(1 << 27):
        bytearray(1 << 28)
    assert len(bytearray(1 << 28)) == 1 << 28


def test_a_file_that_is_too_large_is_not_read(tmp_path: Any) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bytes(tmp_path / "x", 5) == b"12345"
    with pytest.raises(ValueError, match="has more than 4 bytes"):
        read_bytes(tmp_path / "x", 4)
