"""A host that writes what is shared with it: another process changes a region's memory or files."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

import enclave_bridge as eb
from pagegate.client import Client, RegionCheck
from pagegate.errors import ConfigError, TransferError
from pagegate.platforms.sealing import file_key
from pagegate.platforms.simulated import SimulatedRoot
from pagegate.rpc.errors import from_rpc_error
from pagegate.server import Server
from pagegate.transfer import macs
from pagegate.transfer.region import RegionSpec
from pagegate.v1 import transfer_pb2 as pb
from pagegate.v1 import transfer_pb2_grpc as pb_grpc
from support.appraiser import appraiser_for
from support.platforms import CLIENT, SERVER

PAGES = 256
SIZE = PAGES * 4096
BASE = {"book": 1 << 32, "disk": 1 << 33}
ANOTHER_PROCESS = (
    "import os,sys; os.pwrite(os.open(sys.argv[1], os.O_WRONLY), bytes.fromhex(sys.argv[3]), int(sys.argv[2]))"
)


@dataclass
class Memory:
    """A region's pages as the host sees them; writes come from another process."""

    path: str

    def read(self, page: int) -> bytes:
        fd = os.open(self.path, os.O_RDONLY)
        try:
            return os.pread(fd, 4096, page * 4096)
        finally:
            os.close(fd)

    def write(self, page: int, data: bytes, offset: int = 0) -> None:
        at = str(page * 4096 + offset)
        subprocess.run([sys.executable, "-S", "-c", ANOTHER_PROCESS, self.path, at, data.hex()], check=True)

    def flip_bit(self, page: int, offset: int = 1000) -> None:
        self.write(page, bytes([self.read(page)[offset] ^ 0x04]), offset)


def memory_of(server: Server, region: str) -> Memory:
    """The committed generation's memory through /proc, as root on the host's side has it."""
    fd = server.regions.by_name(region).open_current()
    try:
        inode = os.fstat(fd).st_ino
        # The bridge keeps a file's descriptor, and may be another process.
        for process in {os.getpid(), server.bridge.info.process or os.getpid()}:
            for path in Path(f"/proc/{process}/fd").iterdir():
                with suppress(OSError):
                    if (process, int(path.name)) != (os.getpid(), fd) and path.stat().st_ino == inode:
                        return Memory(str(path))
    finally:
        os.close(fd)
    raise AssertionError("no descriptor of the region's memory")


@pytest.fixture
def sealing(tmp_path: Path) -> Callable[[eb.Bridge], eb.Sealing]:
    return file_key(tmp_path / "sealing.key")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The directory of the region `disk`."""
    return tmp_path / "disk"


@pytest.fixture
def guarded(serve: Callable[..., Server], sealing: object) -> Server:
    return serve(sealing=sealing)


@pytest.fixture
def client(connect: Callable[..., Client], guarded: Server) -> Client:
    return connect(guarded)


def tampered(page: int | None = None):
    where = rf"page {page} " if page is not None else ""
    return pytest.raises(TransferError, match=rf"memory tampering detected: region \w+:? ?{where}.*\[TAMPERED\]")


def bad(region: str, *runs: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    return tuple((BASE[region] + first * 4096, pages) for first, pages in runs)


@pytest.mark.parametrize("region", ["book", "disk"])
def test_verify_when_one_bit_is_flipped_names_its_page_and_no_other(client: Client, guarded: Server, region: str):
    client.send(region, os.urandom(SIZE))
    assert client.verify_region(region) == RegionCheck(1, PAGES, 0, ())
    memory_of(guarded, region).flip_bit(17)
    found = client.verify_region(region)
    assert (found.pages, found.bad_pages, found.bad) == (PAGES, 1, bad(region, (17, 1)))
    assert not found.intact
    other = "disk" if region == "book" else "book"
    assert client.verify_region(other).intact


@pytest.mark.parametrize("region", ["book", "disk"])
def test_read_when_one_bit_is_flipped_is_refused_until_it_is_flipped_back(client: Client, guarded: Server, region: str):
    data = os.urandom(SIZE)
    client.send(region, data)
    memory = memory_of(guarded, region)
    memory.flip_bit(17)
    with tampered(17):
        client.read(region)
    memory.flip_bit(17)
    assert client.read(region)[0] == data


def test_read_when_a_page_never_sent_is_written_is_refused(client: Client, guarded: Server):
    client.send("book", os.urandom(4096))
    memory_of(guarded, "book").flip_bit(200)
    with tampered(200):
        client.read("book")


def test_verify_when_two_pages_are_swapped_names_both(client: Client, guarded: Server):
    client.send("book", os.urandom(SIZE))
    memory = memory_of(guarded, "book")
    first, second = memory.read(3), memory.read(9)
    memory.write(3, second)
    memory.write(9, first)
    assert client.verify_region("book").bad == bad("book", (3, 1), (9, 1))


@pytest.mark.parametrize("region", ["book", "disk"])
def test_verify_when_an_older_page_is_restored_names_it(client: Client, guarded: Server, region: str):
    client.send(region, os.urandom(SIZE))
    client.send_page(region, BASE[region] + 5 * 4096, b"o" * 4096)
    memory = memory_of(guarded, region)
    old = memory.read(5)
    client.send_page(region, BASE[region] + 5 * 4096, b"n" * 4096)
    assert client.verify_region(region).intact
    memory.write(5, old)
    assert client.verify_region(region).bad == bad(region, (5, 1))


def test_verify_when_pages_of_the_former_generation_are_restored_names_them(client: Client, guarded: Server):
    client.send("book", os.urandom(SIZE))
    memory = memory_of(guarded, "book")
    old = [memory.read(page) for page in range(4)]
    client.send("book", os.urandom(SIZE))
    memory = memory_of(guarded, "book")
    for page, content in enumerate(old):
        memory.write(page, content)
    assert client.verify_region("book").bad == bad("book", (0, 4))


def test_verify_when_many_runs_are_bad_lists_some_and_counts_all(
    connect: Callable[..., Client], serve: Callable[..., Server]
):
    server = serve(regions=[RegionSpec("book", BASE["book"], 1024)])
    client = connect(server, regions={"book": "read-write"})
    sent = os.urandom(1024 * 4096)
    client.send("book", sent)
    memory = memory_of(server, "book")
    with Path(memory.path).open("r+b", buffering=0) as file:
        for page in range(0, 1024, 2):
            os.pwrite(file.fileno(), bytes([sent[page * 4096] ^ 1]), page * 4096)
    found = client.verify_region("book")
    assert found.bad_pages == 512
    assert len(found.bad) == 256


def test_delta_when_a_page_is_tampered_is_refused_and_replace_repairs(client: Client, guarded: Server):
    client.send("disk", os.urandom(SIZE))
    memory_of(guarded, "disk").flip_bit(8)
    with tampered(8):
        client.send("disk", b"d" * 4096, mode="delta")
    assert guarded.regions.by_name("disk").generation == 1
    client.send("disk", b"r" * 8192)
    assert client.verify_region("disk").intact
    client.send("disk", b"d" * 4096, mode="delta")
    assert client.read("disk")[0] == b"d" * 4096 + b"r" * 4096 + bytes(SIZE - 8192)


def test_page_when_written_in_place_repairs_its_own_page_only(client: Client, guarded: Server):
    client.send("book", os.urandom(SIZE))
    memory = memory_of(guarded, "book")
    memory.flip_bit(1)
    memory.flip_bit(2)
    client.send_page("book", BASE["book"] + 4096, b"p" * 4096)
    assert client.verify_region("book").bad == bad("book", (2, 1))


def test_read_when_it_began_before_a_commit_goes_on_with_the_former_generation(guarded: Server, client: Client):
    first, second = os.urandom(SIZE), os.urandom(SIZE)
    client.send("book", first)
    session = client.session.session
    region = guarded.regions.by_name("book")
    with (
        region.read(guarded.bridge) as reading,
        client._bridge.transfer(os.urandom(16), region=1, base_gpa=BASE["book"], pages=PAGES) as arrives,
        guarded.bridge.transfer(os.urandom(16), region=1, base_gpa=BASE["book"], pages=PAGES) as leaves,
    ):
        client.send("book", second)
        served = next(iter(guarded.sessions)).established.session
        records, _ = reading.seal(served, leaves, first_gpa=BASE["book"], pages=PAGES)
        target = bytearray(SIZE)
        arrives.target_memory(target)
        session.open(arrives, records)
    assert target == first
    assert client.read("book")[0] == second


# ---- while the server is down -------------------------------------------------------------


def table(home: Path) -> Path:
    (found,) = home.glob("gen-*.macs")
    return found


@pytest.fixture
def restart(serve: Callable[..., Server], connect: Callable[..., Client], sealing: object) -> Callable[..., Client]:
    """restart(**options): another server on the same files, and its client."""
    running: list[Server] = []

    def again(**options: object) -> Client:
        for server in running:
            server.stop(0.2)
        running[:] = [serve(**{"sealing": sealing, **options})]
        return connect(running[0])

    return again


def test_restart_when_nothing_changed_verifies_and_goes_on(restart: Callable[..., Client]):
    data = bytearray(os.urandom(SIZE))
    client = restart()
    client.send("disk", data)
    client.send_page("disk", BASE["disk"] + 7 * 4096, b"j" * 4096)
    data[7 * 4096 : 8 * 4096] = b"j" * 4096
    client = restart()
    assert client.verify_region("disk") == RegionCheck(2, PAGES, 0, ())
    client.send_page("disk", BASE["disk"], b"k" * 4096)
    data[:4096] = b"k" * 4096
    client.send("disk", b"l" * 4096, mode="delta", first_gpa=BASE["disk"] + 4096)
    data[4096:8192] = b"l" * 4096
    client = restart()
    assert client.read("disk")[0] == data
    assert client.verify_region("disk") == RegionCheck(4, PAGES, 0, ())


def test_restart_when_a_page_was_changed_meanwhile_finds_it(restart: Callable[..., Client], home: Path):
    client = restart()
    client.send("disk", os.urandom(SIZE))
    restart(regions=[RegionSpec("book", BASE["book"], PAGES)])
    Memory(str(home / "current")).flip_bit(99)
    client = restart()
    assert client.verify_region("disk").bad == bad("disk", (99, 1))
    with tampered(99):
        client.read("disk")
    with tampered(99):
        client.send_page("disk", BASE["disk"], bytes(4096))


@pytest.mark.parametrize("change", ["flip", "cut", "remove", "empty"])
def test_restart_when_the_table_was_changed_refuses_the_region_until_it_is_sent_again(
    restart: Callable[..., Client], home: Path, change: str, caplog: pytest.LogCaptureFixture
):
    data = os.urandom(SIZE)
    client = restart()
    client.send("disk", data)
    client.send("book", data)
    path = table(home)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if change == "remove":
        path.unlink()
    else:
        path.write_bytes({"flip": content, "cut": content[:-1], "empty": b""}[change])
    caplog.clear()
    client = restart()
    assert "memory tampering detected: region disk" in caplog.text
    found = client.verify_region("disk")
    assert (found.bad_pages, found.bad) == (PAGES, bad("disk", (0, PAGES)))
    for use in (
        lambda: client.read("disk"),
        lambda: client.send_page("disk", BASE["disk"], bytes(4096)),
        lambda: client.send("disk", bytes(4096), mode="delta"),
    ):
        with tampered():
            use()
    assert client.verify_region("book").intact
    client.send("disk", data)
    assert client.read("disk")[0] == data


def test_restart_when_a_page_and_its_older_mac_are_restored_finds_it(restart: Callable[..., Client], home: Path):
    client = restart()
    client.send("disk", os.urandom(SIZE))
    old = (home / "current").read_bytes()[4 * 4096 : 5 * 4096]
    old_entry = table(home).read_bytes()[72 + 4 * 24 : 72 + 5 * 24]
    client.send("disk", os.urandom(4096), mode="delta", first_gpa=BASE["disk"] + 4 * 4096)
    content = bytearray(table(home).read_bytes())
    content[72 + 4 * 24 : 72 + 5 * 24] = old_entry
    table(home).write_bytes(content)
    Memory(str(home / "current")).write(4, old)
    assert not restart().verify_region("disk").intact


def test_restart_when_the_table_is_of_an_older_generation_refuses(restart: Callable[..., Client], home: Path):
    data = os.urandom(SIZE)
    client = restart()
    client.send("disk", data)
    old = table(home).read_bytes()
    client.send("disk", data)
    table(home).write_bytes(old)
    with tampered():
        restart().read("disk")


def test_restart_when_the_last_write_in_place_was_cut_from_the_table_refuses(
    restart: Callable[..., Client], home: Path
):
    client = restart()
    client.send("disk", os.urandom(SIZE))
    client.send_page("disk", BASE["disk"], b"1" * 4096)
    before = table(home).stat().st_size
    client.send_page("disk", BASE["disk"], b"2" * 4096)
    os.truncate(table(home), before)
    with tampered():
        restart().read("disk")


def test_restart_when_the_whole_directory_is_an_older_one_is_not_found(restart: Callable[..., Client], home: Path):
    """The documented limit (docs/regions.md): a plain disk has no monotonic counter."""
    client = restart()
    client.send("disk", b"1" * SIZE)
    shutil.copytree(home, home.with_name("old"), symlinks=True)
    client.send("disk", b"2" * SIZE)
    restart(regions=[RegionSpec("book", BASE["book"], PAGES)])
    shutil.rmtree(home)
    home.with_name("old").rename(home)
    assert restart().verify_region("disk").intact


def test_restart_when_the_sealing_key_is_another_refuses(restart: Callable[..., Client], tmp_path: Path):
    client = restart()
    client.send("disk", os.urandom(SIZE))
    with tampered():
        restart(sealing=file_key(tmp_path / "another.key")).read("disk")


def test_restart_when_a_region_was_never_written_serves_zeros(restart: Callable[..., Client], home: Path):
    restart()
    table(home).unlink()  # as after a crash between the first start's two files
    client = restart()
    assert client.read("disk")[0] == bytes(SIZE)
    client.send_page("disk", BASE["disk"], b"x" * 4096)
    assert restart().read("disk")[0] == b"x" * 4096 + bytes(SIZE - 4096)


def test_restart_when_many_pages_were_written_in_place_has_a_short_table(
    restart: Callable[..., Client], home: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pagegate.transfer.protection._JOURNAL_LIMIT", 4)
    client = restart()
    client.send("disk", bytes(SIZE))
    for number in range(11):
        client.send_page("disk", BASE["disk"] + number * 4096, bytes([number + 1]) * 4096)
    assert table(home).stat().st_size < 72 + PAGES * 24 + 32 + 5 * (80 + 4096)
    client = restart()
    assert client.verify_region("disk") == RegionCheck(12, PAGES, 0, ())
    assert client.read("disk")[0][10 * 4096 : 12 * 4096] == b"\x0b" * 4096 + bytes(4096)


# ---- who may ask, and how -----------------------------------------------------------------


def ask(client: Client, server: Server, **changes: object) -> pb.VerifyRegionResponse:
    """VerifyRegion by hand, for what the public client would never send."""
    session = client.session
    region = session.regions["book"]
    nonce = bytes(changes.pop("nonce", os.urandom(16)))  # type: ignore[call-overload]
    request = pb.VerifyRegionRequest(
        session_id=session.session_id,
        region=region.number,
        first_gpa=region.base_gpa,
        pages=0,
        nonce=nonce,
        mac=session.session.mac(eb.MacPurpose.CONTROL, macs.verify(nonce, region.number, region.base_gpa, 0)),
    )
    request.MergeFrom(pb.VerifyRegionRequest(**changes))  # type: ignore[arg-type]
    with grpc.insecure_channel(server.address) as channel:
        try:
            return pb_grpc.PageTransferStub(channel).VerifyRegion(request, timeout=20)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pages": 1}, "MAC"),
        ({"mac": b"m" * 48}, "MAC"),
        ({"session_id": b"s" * 16}, "SESSION_UNKNOWN"),
        ({"nonce": b"short"}, "MALFORMED_MESSAGE"),
    ],
)
def test_verify_when_the_request_is_wrong_is_refused(
    client: Client, guarded: Server, changes: dict[str, object], reason: str
):
    with pytest.raises(TransferError, match=rf"\[{reason}\]"):
        ask(client, guarded, **changes)


def test_verify_when_asked_to_the_end_checks_all(client: Client, guarded: Server):
    assert ask(client, guarded).pages == PAGES


def test_verify_when_the_answer_is_not_the_servers_is_refused(client: Client, guarded: Server):
    other = ask(client, guarded)
    client._verify = lambda request, metadata: other  # type: ignore[method-assign,assignment]
    with pytest.raises(TransferError, match=r"\[MAC\]"):
        client.verify_region("book")


def test_verify_when_only_writing_was_granted_is_refused(
    simulated_root: SimulatedRoot, serve: Callable[..., Server], connect: Callable[..., Client]
):
    writer = appraiser_for(simulated_root, {CLIENT: {"*": "write"}, SERVER: {"*": "write"}})
    server = serve(appraiser=writer)
    client = connect(server, regions={"book": "write"})
    with pytest.raises(TransferError, match="REGION_NOT_GRANTED"):
        client.verify_region("book")
    with pytest.raises(TransferError, match="REGION_NOT_GRANTED"):
        ask(client, server)


def test_verify_when_the_region_is_unprotected_says_so(connect: Callable[..., Client], serve: Callable[..., Server]):
    server = serve(regions=[RegionSpec("book", BASE["book"], PAGES, protect=False)])
    client = connect(server, regions={"book": "read-write"})
    client.send("book", os.urandom(SIZE))
    memory_of(server, "book").flip_bit(17)
    assert not server.regions.by_name("book").protected
    client.read("book")
    with pytest.raises(TransferError, match="REGION_UNPROTECTED"):
        client.verify_region("book")


def test_serve_when_files_are_to_be_protected_without_a_sealing_key_is_refused(
    serve: Callable[..., Server], tmp_path: Path
):
    with pytest.raises(ConfigError, match="sealing key"):
        serve(regions=[RegionSpec("disk", 0, 1, tmp_path / "d", protect=True)])


def test_verify_when_pages_are_bad_is_a_refusal_in_the_audit(
    connect: Callable[..., Client], serve: Callable[..., Server]
):
    events = []
    server = serve(observer=events.append)
    client = connect(server)
    client.send("book", os.urandom(SIZE))
    memory_of(server, "book").flip_bit(17)
    client.verify_region("book")
    told = [event.details for event in events if event.kind == "refusal"]
    assert [(d["reason"], d["region"], d["bad_pages"]) for d in told] == [("TAMPERED", "book", 1)]
