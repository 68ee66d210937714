from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import pytest
from openai import AsyncOpenAI

from expertmesh_common.bundle.blobs import Bundle
from models.tiny_bundle import make_tiny_bundle
from rigs.openai_door import DoorHouse, door_house


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(make_tiny_bundle(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
async def house(bundle: Bundle) -> AsyncIterator[DoorHouse]:
    """The door in front of a gateway that serves the tiny bundle."""
    async with door_house(bundle) as house:
        yield house


@pytest.fixture
async def client(house: DoorHouse) -> AsyncIterator[AsyncOpenAI]:
    async with house.client() as client:
        yield client


@pytest.fixture
async def raw(house: DoorHouse) -> AsyncIterator[httpx2.AsyncClient]:
    async with house.raw() as raw:
        yield raw
