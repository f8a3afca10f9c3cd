from typing import Any

import pytest

from tests.support.measuring import Measuring, measuring_registry


@pytest.fixture
async def measuring(registry: Any) -> Measuring:
    return await measuring_registry(registry)
