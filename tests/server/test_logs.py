from __future__ import annotations

import json
import logging

from dragoman_server.logs import TRACE_ID, JsonFormatter, OneLineFormatter, note_trace


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


def test_a_json_record_is_one_object_on_one_line_whatever_it_holds() -> None:
    forged = 'x"}\n{"level": "INFO", "message": "all is well"}\u2028\x1b[31m'
    record = logging.LogRecord("name", logging.ERROR, "file", 1, "told %s", (forged,), None)
    record.level = forged  # what `extra` gives does not take the place of what everybody has
    record.caller = forged
    line = JsonFormatter().format(record)
    assert line.isascii()
    assert line.isprintable()
    fields = json.loads(line)
    assert fields["level"] == "ERROR"
    assert fields["message"] == f"told {forged}"
    assert fields["caller"] == forged
    assert fields["time"].endswith("+00:00")


def test_a_json_record_has_its_error() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("name", logging.ERROR, "file", 1, "failed", (), info)
    line = JsonFormatter().format(record)
    assert line.isprintable()
    assert "ValueError: first\nsecond" in json.loads(line)["error"]


def test_a_record_names_the_trace_of_its_call() -> None:
    def lines() -> list[str]:
        record = logging.LogRecord("name", logging.INFO, "file", 1, "told", (), None)
        assert note_trace(record)
        return [OneLineFormatter("%(message)s").format(record), JsonFormatter().format(record)]

    plain, as_json = lines()
    assert plain == "told"
    assert "trace_id" not in json.loads(as_json)
    token = TRACE_ID.set("0af7651916cd43dd8448eb211c80319c")
    plain, as_json = lines()
    TRACE_ID.reset(token)
    assert plain == "told trace_id=0af7651916cd43dd8448eb211c80319c"
    assert json.loads(as_json)["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
