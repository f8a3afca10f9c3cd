"""Model cards -> messages."""

from anthesis.v1 import registry_pb2

from services.registry.cards.service import Card
from services.registry.rpc.messages import timestamp


def card(found: Card) -> registry_pb2.ModelCard:
    return registry_pb2.ModelCard(
        name=found.name,
        markdown=found.markdown,
        sections=[
            registry_pb2.ModelCardSection(
                title=section.title, text=section.text, inherited=section.inherited, generated=section.generated
            )
            for section in found.sections
        ],
        generation=found.generation,
        update_time=timestamp(found.update_time),
        updated_by=found.updated_by,
    )
