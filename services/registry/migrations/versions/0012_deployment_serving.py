"""Which version a deployment's calls get while its workers load another one

Revises: 0011
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("deployments") as batch:
        batch.add_column(sa.Column("serving", sa.Text(), nullable=True))
        batch.create_foreign_key(op.f("fk_deployments_serving_model_versions"), "model_versions", ["serving"], ["name"])


def downgrade() -> None:
    with op.batch_alter_table("deployments") as batch:
        batch.drop_constraint(op.f("fk_deployments_serving_model_versions"), type_="foreignkey")
        batch.drop_column("serving")
