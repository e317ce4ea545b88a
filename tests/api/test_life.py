"""An API process begins and ends whenever it is told to."""

import asyncio

from app.main import create_app
from app.settings import Settings
from tests.processes import PATIENCE_S


async def test_it_ends_in_the_midst_of_its_beginning(settings: Settings) -> None:
    for number in range(15):
        app = create_app(settings)
        async with asyncio.timeout(PATIENCE_S), app.router.lifespan_context(app):
            await asyncio.sleep(0.001 * number)
