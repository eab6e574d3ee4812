"""Clients of an augserve server, for threads and for asyncio.

from augserve.client import Client

with Client("http://127.0.0.1:8000") as client:
answer = client.predict(["cat.png"], tracking=False)
"""

from augserve.client.answers import RefusedError
from augserve.client.bodies import Encoding, Image
from augserve.client.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "Encoding", "Image", "RefusedError"]
