"""Random requests after the server's own description: no one makes it fail."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error

from tests.serve.conftest import LiveServer

pytestmark = pytest.mark.filterwarnings("ignore")


def test_no_random_request_is_a_5xx(scripted: LiveServer) -> None:
    schema = schemathesis.openapi.from_dict(scripted.client.get("/openapi.json").json())
    asked = []
    for result in schema.get_all_operations():
        operation = result.ok()
        has_body = operation.method == "post"
        for mode in (
            schemathesis.GenerationMode if has_body else [schemathesis.GenerationMode.POSITIVE]
        ):

            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            @hypothesis.settings(
                max_examples=15 if has_body else 2,
                phases=[hypothesis.Phase.generate],
                deadline=None,
                database=None,
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            def ask(case: Any) -> None:
                if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                    case.body["model"] = "script"  # or all of it is a 404
                found = case.call(base_url=scripted.url)
                case.validate_response(found, checks=[not_a_server_error])
                asked.append((case.path, found.status_code))

            ask()
    assert {path for path, _ in asked} >= {"/v1/chat/completions", "/health", "/"}
    assert {status for path, status in asked if path == "/v1/chat/completions"} >= {200, 400}
