"""Published evaluations of BLOOM and BLOOMZ, from published.json, which says for each suite where they stand.

They are reference rows for people's own results: put into the database at bootstrap, and never changed there.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession

from services.registry.database import Clock, Database, insert_if_absent, utc_now
from services.registry.evaluations.suites import BENCHMARK
from services.registry.tables import Evaluation, EvaluationResult, EvaluationSuite

DATA = Path(__file__).with_name("published.json")
PUBLISHED = "PUBLISHED"


async def seed_published(database: Database, clock: Clock = utc_now) -> None:
    """Put the published suites and their results into the database, behind the catalogue; what is there stays."""
    async with database.write() as session:
        for suite in json.loads(DATA.read_text())["suites"]:
            await _seed(session, suite, clock())


async def _seed(session: AsyncSession, suite: dict[str, Any], now: datetime) -> None:
    name = f"{suite['name']}@1"
    is_new = await insert_if_absent(
        session,
        EvaluationSuite,
        name=name,
        family=suite["name"],
        number=1,
        kind=BENCHMARK,
        description=suite["description"],
        datasets=[],
        sequence_length=0,
        task=suite["task"],
        metrics=suite["metrics"],
        published=True,
        created_by="",
        create_time=now,
    )
    if not is_new:
        return
    evaluations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for model, by_language in suite["results"].items():
        evaluation = f"published-{name}-{model}"
        evaluations.append(
            {
                "id": evaluation,
                "model": model,
                "suite": name,
                "source": PUBLISHED,
                "reference": suite["source"],
                "created_by": "",
                "create_time": now,
            }
        )
        for language, values in by_language.items():
            key = {"evaluation": evaluation, "language": language}
            for metric, value in zip(suite["metrics"], values, strict=True):
                results.append(key | {"metric": metric["name"], "value": value})
    await session.execute(insert(Evaluation), evaluations)
    await session.execute(insert(EvaluationResult), results)
