"""What every store must do, told as tests; a store's own test file subclasses and supplies `case`.

    class TestMemoryStore(StoreContract):
        @pytest.fixture
        async def case(self) -> AsyncIterator[StoreCase]: ...

The `store` fixture is audited: after every transition of every test the counters must add up and
agree with the records (design R9). `raw` is the same store unaudited, for concurrent callers.
"""

from __future__ import annotations

from tests.conformance.contract_accept import AcceptContract
from tests.conformance.contract_blobs import BlobContract
from tests.conformance.contract_lease import LeaseContract
from tests.conformance.contract_life import LifeContract
from tests.conformance.contract_order import OrderContract
from tests.conformance.contract_outbound import OutboundContract
from tests.conformance.contract_settle import SettleContract
from tests.conformance.contract_upkeep import UpkeepContract


class StoreContract(
    AcceptContract,
    LeaseContract,
    SettleContract,
    OrderContract,
    OutboundContract,
    UpkeepContract,
    BlobContract,
    LifeContract,
):
    """Subclass per store; override `case`."""
