"""What a request asks for is what its job says, whatever field it is in."""

import json
from typing import Any

import pytest
from anthesis.v1 import job_pb2

from services.registry.job_specs import spec_from_row, spec_to_row
from services.registry.rpc import messages
from services.registry.tables import PENDING, Job


def filled(message: Any) -> Any:
    """The message with something in every field. A job has no `auto`: what was left to the registry has a value."""
    for number, field in enumerate(message.DESCRIPTOR.fields, 2):
        if field.name == "auto":
            continue
        value = getattr(message, field.name)
        if field.message_type:
            filled(value)
        elif hasattr(value, "extend"):
            value.extend([f"{field.name}-1", f"{field.name}-2"])
        elif field.cpp_type == field.CPPTYPE_STRING:
            setattr(message, field.name, field.name)
        else:
            setattr(message, field.name, field.cpp_type == field.CPPTYPE_BOOL or number)
    return message


@pytest.mark.parametrize("kind", ["pretrain", "fine_tune"])
def test_no_field_of_a_spec_is_lost_on_its_way_into_the_database_and_back(kind):
    request = job_pb2.CreateJobRequest()
    asked = filled(getattr(request, kind))
    row = json.loads(json.dumps(spec_to_row(messages.job_spec(request))))
    assert spec_to_row(spec_from_row(row)) == row
    job = messages.job(Job(id="job-1", spec=row, state=PENDING, priority="NORMAL"))
    assert getattr(job, kind) == asked
