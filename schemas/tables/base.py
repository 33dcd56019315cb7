"""The declarative base of all tables, and the types of their columns."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar

from sqlalchemy import BigInteger, MetaData, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REAL, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, mapped_column

Json = dict[str, Any]
Key = Annotated[str, mapped_column(Text, primary_key=True)]
Timestamp = Annotated[datetime, mapped_column(TIMESTAMP(timezone=True))]
# Time of the row's last write, by the database's clock, so that all members agree.
Now = Annotated[datetime, mapped_column(TIMESTAMP(timezone=True), server_default=text("now()"))]
Texts = Annotated[list[str], mapped_column(ARRAY(Text), server_default=text("'{}'"))]
Ints = Annotated[list[int], mapped_column(ARRAY(BigInteger))]
Floats = Annotated[list[float], mapped_column(ARRAY(REAL))]
Object = Annotated[Json, mapped_column(JSONB, server_default=text("'{}'::jsonb"))]


class Base(DeclarativeBase):
    """Declarative base with a naming convention, so that every constraint has a name migrations can use."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text,
        datetime: TIMESTAMP(timezone=True),
        int: BigInteger,
        float: REAL,
    }
