"""The hand-written batch codec and the generated classes are the same wire format."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from pagegate.rpc.codec import Batch, decode_batch, decode_region, decode_request, encode, encode_batch
from pagegate.v1 import transfer_pb2 as pb


@given(st.binary(min_size=1, max_size=5000), st.integers(0, 2**64 - 1))
def test_encode_makes_the_bytes_that_the_generated_class_makes(records: bytes, number: int):
    expected = pb.TransferPagesRequest(batch=pb.PageBatch(records=records, number=number)).SerializeToString()
    assert encode_batch(Batch(records, number)) == expected
    region = pb.GetRegionResponse(batch=pb.PageBatch(records=records, number=number)).SerializeToString()
    assert encode(Batch(records, number)) == region


@given(st.binary(min_size=1, max_size=300), st.integers(0, 2**64 - 1))
def test_decode_reads_what_the_generated_class_wrote(records: bytes, number: int):
    data = pb.TransferPagesRequest(batch=pb.PageBatch(records=records, number=number)).SerializeToString()
    batch = decode_batch(data)
    assert batch is not None
    assert (bytes(batch.records), batch.number) == (records, number)


@given(st.binary(max_size=200))
def test_decode_when_given_anything_agrees_with_the_generated_class(data: bytes):
    try:
        expected = pb.TransferPagesRequest.FromString(data)
    except DecodeError:
        assert decode_batch(data) is None
        return
    batch = decode_batch(data)
    if batch is not None:
        assert expected.WhichOneof("step") == "batch"
        assert (bytes(batch.records), batch.number) == (expected.batch.records, expected.batch.number)


def test_decode_when_fields_are_in_another_order_still_reads_the_batch():
    inner = bytes([2 << 3, 5]) + bytes([1 << 3 | 2, 3]) + b"abc"
    message = decode_request(bytes([2 << 3 | 2, len(inner)]) + inner)
    assert isinstance(message, Batch)
    assert (bytes(message.records), message.number) == (b"abc", 5)
    assert isinstance(decode_region(bytes([2 << 3 | 2, len(inner)]) + inner), Batch)


def test_decode_when_not_a_batch_gives_the_message():
    begin = pb.TransferPagesRequest(begin=pb.TransferBegin(transfer_id=b"t" * 16))
    assert decode_request(begin.SerializeToString()) == begin
    info = pb.GetRegionResponse(info=pb.RegionInfo(pages=4))
    assert decode_region(encode(info)) == info


@pytest.mark.parametrize("data", [b"\x12", b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x12\x05\x0a\xff"])
def test_decode_when_truncated_is_refused(data: bytes):
    with pytest.raises(DecodeError):
        decode_request(data)
