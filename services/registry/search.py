"""What lists can be asked for: fields that hold together. Any text goes in; what it means to LIKE is escaped.

Text is compared with case, width and white space taken out. Lists in JSON columns are asked for a value as JSON writes
it, quotes and all, so that no value is taken for a part of another.
"""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, Text, cast, literal, or_, select
from sqlalchemy.orm import InstrumentedAttribute

from services.common.errors import InvalidArgument
from services.registry.licences.expression import parse
from services.registry.names import id_at
from services.registry.tables import READY, Job, JobDataset, Model, ModelVersion
from services.registry.tags import normal_tag
from services.registry.text import searchable

MAX_TEXT = 200
NEWEST, OLDEST = "NEWEST", "OLDEST"


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """What all lists can be asked for. Empty or None: any."""

    text: str = ""
    created_by: str = ""
    start: datetime | None = None  # made at or after
    end: datetime | None = None  # and before
    order: str = ""  # NEWEST, OLDEST; "": the list's own

    @property
    def scope(self) -> str:
        """Tells the page tokens of this query from those of another."""
        return f"{type(self).__name__} " + hashlib.sha256(repr(self).encode(errors="replace")).hexdigest()[:16]

    @property
    def oldest_first(self) -> bool:
        return self.order == OLDEST

    def _text(self) -> str:
        """Raises InvalidArgument for a novel."""
        if len(self.text) > MAX_TEXT:
            raise InvalidArgument(f"text has {len(self.text)} characters; search for at most {MAX_TEXT}")
        return searchable(self.text)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelQuery(Query):
    licence: str = ""  # one id
    language: str = ""
    tag: str = ""
    base_model: str = ""
    ready: bool = False  # only those that have a version that is READY
    deleted: bool = False  # deleted ones, too

    def select(self) -> Select[Model]:
        """Raises InvalidArgument for what can be nobody's licence or tag."""
        query = _common(select(Model), self, Model)
        if text := self._text():
            query = query.where(Model.search_text.contains(text, autoescape=True))
        if self.language:
            query = query.where(_lists(Model.languages, self.language))
        if self.base_model:
            query = query.where(Model.base_model == self.base_model)
        if self.ready:
            query = query.where(Model.latest_version > 0)
        return query if self.deleted else query.where(Model.delete_time.is_(None))


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionQuery(Query):
    licence: str = ""
    language: str = ""  # of its model
    tag: str = ""
    parent: str = ""  # a version's name
    dataset: str = ""
    deleted: bool = False

    def select(self) -> Select[ModelVersion]:
        """Raises InvalidArgument for what can be nobody's licence or tag."""
        query = _common(select(ModelVersion), self, ModelVersion)
        if text := self._text():
            of_model = select(Model.name).where(Model.search_text.contains(text, autoescape=True))
            query = query.where(
                or_(
                    ModelVersion.name.contains(text, autoescape=True),
                    _json(ModelVersion.tags).contains(json.dumps(text)[1:-1], autoescape=True),
                    ModelVersion.model.in_(of_model),
                )
            )
        if self.language:
            speaking = select(Model.name).where(_lists(Model.languages, self.language))
            query = query.where(ModelVersion.model.in_(speaking))
        if self.parent:
            merged = _lists(ModelVersion.other_parents, self.parent)
            query = query.where(or_(ModelVersion.parent == self.parent, merged))
        if self.dataset:
            versions = _json(ModelVersion.datasets).icontains(json.dumps(f"{self.dataset}@")[:-1], autoescape=True)
            query = query.where(or_(_lists(ModelVersion.datasets, self.dataset), versions))
        return query if self.deleted else query.where(ModelVersion.state == READY)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobQuery(Query):
    output_model: str = ""
    base: str = ""  # a version's name
    dataset: str = ""  # one version's name, or that of all
    fine_tuning: bool = False  # only what OpenAI's API has submitted
    after: str = ""  # a job's id: newer ones are left out

    @property
    def names_dataset_version(self) -> bool:
        return "@" in self.dataset

    def select(self) -> Select[Job]:
        """Times are compared by what ids begin with: they are in the order of listing."""
        query = select(Job)
        if text := self._text():
            names = (Job.output_model, Job.base)
            query = query.where(or_(*(name.contains(text, autoescape=True) for name in names)))
        for column, value in ((Job.created_by, self.created_by), (Job.output_model, self.output_model)):
            if value:
                query = query.where(column == value)
        if self.base:
            query = query.where(Job.base == self.base)
        if self.dataset:
            query = self._that_learn_from(query)
        if self.fine_tuning:
            query = query.where(Job.fine_tuning.is_not(None))
        if self.after:
            query = query.where(Job.id < self.after)
        if self.start:
            query = query.where(Job.id >= id_at("job", self.start))
        if self.end:
            query = query.where(Job.id < id_at("job", self.end))
        return query

    def _that_learn_from(self, query: Select[Job]) -> Select[Job]:
        if self.names_dataset_version:
            return query.join(JobDataset, JobDataset.job_id == Job.id).where(JobDataset.dataset == self.dataset)
        of_any = select(JobDataset.job_id).where(JobDataset.dataset.startswith(f"{self.dataset}@", autoescape=True))
        return query.where(Job.id.in_(of_any))


def _common(
    query: Select[Any], asked: ModelQuery | VersionQuery, table: type[Model] | type[ModelVersion]
) -> Select[Any]:
    if asked.created_by:
        query = query.where(table.created_by == asked.created_by)
    if asked.start:
        query = query.where(table.create_time >= asked.start)
    if asked.end:
        query = query.where(table.create_time < asked.end)
    if asked.licence:
        padded = literal(" ").concat(table.licence).concat(" ")  # "a AND b": ids have no space
        for licence in parse(asked.licence):
            query = query.where(padded.contains(f" {licence} ", autoescape=True))
    if asked.tag:
        query = query.where(_lists(table.tags, normal_tag(asked.tag)))
    return query


def _lists(column: InstrumentedAttribute[list[str]], value: str) -> ColumnElement[bool]:
    """Whether a JSON list has `value`, in ASCII of whatever case."""
    return _json(column).icontains(json.dumps(value), autoescape=True)


def _json(column: InstrumentedAttribute[list[str]]) -> ColumnElement[str]:
    return cast(column, Text)
