"""The energy that jobs used, as measured


Revises: 0016
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("energy", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "energy")
