"""A record of each JSON format, as tests of records begin with."""

JSON_FORMATS = ("pairs", "mmc4", "obelics", "llava", "instruct")


def talk(*turns, **others) -> dict:
    return {"conversations": [{"from": speaker, "value": words} for speaker, words in turns]} | others


def record(form: str, name) -> dict:
    """A record of a format with one picture."""
    return {
        "pairs": {"image": name, "caption": "a cat", "similarity": 0.3},
        "mmc4": {
            "text_list": ["One.", "Two."],
            "image_info": [{"image_name": name, "matched_text_index": 0, "matched_sim": 0.3}],
        },
        "obelics": {"texts": ["One.", None, "Two."], "images": [None, name, None]},
        "llava": talk(("human", "<image> What?"), ("gpt", "A cat."), image=name),
        "instruct": {
            "instruction": "Draw.",
            "text_list": ["One.", "Two."],
            "images": [name],
            "matched_text_index": [0],
        },
    }[form]


VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1,
    10**400,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "1.jpg",
    "../x",
    "https://x/y",
    "\ud800",
    "\ufeff",
    "<image>",
    [],
    [None],
    [1],
    ["a"],
    [[]],
    [{}],
    {},
    {"a": 1},
    [[0.1] * 3] * 2,
]

STORY = {
    "id": "s",
    "title": "A story",
    "cover": "c.png",
    "pages": [{"text": "Page.", "image": "1.jpg"}, {"text": "End."}],
    "license": "CC",
}
