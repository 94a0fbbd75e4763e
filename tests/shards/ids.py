"""Ids of images from which it is hard to make keys, for hypothesis to draw."""

from __future__ import annotations

from hypothesis import strategies as st

LONG = "x" * 300
IDS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        [
            "",
            "x",
            "x-2",
            "x-2-2",
            "x-3",
            "X",
            "a.b",
            "a/b",
            "a_b",
            "..",
            "-",
            "_",
            "image",
            "\0",
            "a\nb",
            "é",
            "e\u0301",
        ]
    ),
    st.sampled_from([LONG, LONG[:120], LONG[:120] + "-2", LONG[:118] + "-2", "ü" * 150, "a" + "日" * 100, "🙂" * 80]),
)
