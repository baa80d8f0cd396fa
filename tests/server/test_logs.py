from __future__ import annotations

import logging

from dragoman_server.logs import OneLineFormatter


def test_a_record_is_one_line_whatever_it_holds() -> None:
    try:
        raise ValueError("first\nsecond\x1b[31m\u2028third")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("name", logging.ERROR, "file", 1, "forged\r\nERROR %s", ("\u202e",), info)
    line = OneLineFormatter("%(levelname)s %(message)s").format(record)
    assert line.isprintable()
    assert line.startswith("ERROR forged\\r\\nERROR \\u202e")
    assert "Traceback" in line
    assert "second" in line


def test_plain_text_stays_as_it_is() -> None:
    record = logging.LogRecord("name", logging.INFO, "file", 1, "gr\u00fc\u00dfe %d", (7,), None)
    assert OneLineFormatter("%(message)s").format(record) == "gr\u00fc\u00dfe 7"
