//! Reads requests: the CBOR of AWS's `nsm-api` (src/api/mod.rs, `Request`).
//!
//! What hardware does with malformed requests is not published. Two readers are:
//! that type under serde_cbor, and QEMU's device. Here a request is accepted only
//! if both accept it (so fields may come in any order, unknown ones are skipped,
//! data may be text), and refused if either refuses it: a client that works here
//! asks no leniency of the real device. The codes follow their descriptions in
//! `nsm-api`: `InvalidArgument` when the bytes or the fields are wrong,
//! `InvalidOperation` for a well-formed command that no module has (QEMU answers
//! `InvalidOperation` to both), `InputTooLarge` for length.

use minicbor::data::Type;
use minicbor::{Decoder, decode};

use super::response::ErrorCode;

/// Longest request: the driver's limit (linux/drivers/misc/nsm.c, NSM_REQUEST_MAX_SIZE).
pub const REQUEST_MAX: usize = 0x1000;
/// Longest `user_data`, `nonce` and `public_key`, each: AWS's documented limit. Two
/// reports say that hardware signs longer ones too (github.com/hf/nitrite, pull
/// requests 3 and 5, 2023 and 2024); a client must not rely on that.
pub const FIELD_MAX: usize = 1024;

/// One request, borrowing from its bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request<'a> {
    DescribeNsm,
    DescribePcr { index: u16 },
    ExtendPcr { index: u16, data: &'a [u8] },
    LockPcr { index: u16 },
    LockPcrs { range: u16 },
    Attestation(Claims<'a>),
    GetRandom,
}

/// What the caller wants attested; `None` for null and for absent.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Claims<'a> {
    pub(super) user_data: Option<&'a [u8]>,
    pub(super) nonce: Option<&'a [u8]>,
    pub(super) public_key: Option<&'a [u8]>,
}

impl<'a> Request<'a> {
    /// Reads exactly one request that fills `bytes`.
    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self, ErrorCode> {
        if bytes.len() > REQUEST_MAX {
            return Err(ErrorCode::InputTooLarge);
        }
        well_formed(bytes)?;
        let mut input = Decoder::new(bytes);
        match input.datatype().map_err(malformed)? {
            Type::String => match input.str().map_err(malformed)? {
                "DescribeNSM" => Ok(Self::DescribeNsm),
                "GetRandom" => Ok(Self::GetRandom),
                name => Err(refuse(name)),
            },
            Type::Map | Type::MapIndef => Self::decode_map(&mut input),
            _ => Err(ErrorCode::InvalidArgument),
        }
    }

    fn decode_map(input: &mut Decoder<'a>) -> Result<Self, ErrorCode> {
        let mut request = None;
        entries(input, |name, input| {
            let body = match name {
                "DescribePCR" => Self::DescribePcr { index: number(input, "index")? },
                "ExtendPCR" => Self::decode_extend(input)?,
                "LockPCR" => Self::LockPcr { index: number(input, "index")? },
                "LockPCRs" => Self::LockPcrs { range: number(input, "range")? },
                "Attestation" => Self::Attestation(Claims::decode(input)?),
                name => return Err(refuse(name)),
            };
            assign(&mut request, body)
        })?;
        request.ok_or(ErrorCode::InvalidArgument)
    }

    fn decode_extend(input: &mut Decoder<'a>) -> Result<Self, ErrorCode> {
        let (mut index, mut data) = (None, None);
        entries(input, |name, input| match name {
            "index" => assign(&mut index, pcr_number(input)?),
            "data" => assign(&mut data, octets(input)?),
            _ => input.skip().map_err(malformed),
        })?;
        match (index, data) {
            (Some(index), Some(data)) => Ok(Self::ExtendPcr { index, data }),
            _ => Err(ErrorCode::InvalidArgument),
        }
    }
}

impl<'a> Claims<'a> {
    fn decode(input: &mut Decoder<'a>) -> Result<Self, ErrorCode> {
        let (mut user_data, mut nonce, mut public_key) = (None, None, None);
        entries(input, |name, input| match name {
            "user_data" => assign(&mut user_data, claim(input)?),
            "nonce" => assign(&mut nonce, claim(input)?),
            "public_key" => assign(&mut public_key, claim(input)?),
            _ => input.skip().map_err(malformed),
        })?;
        Ok(Self { user_data: user_data.flatten(), nonce: nonce.flatten(), public_key: public_key.flatten() })
    }
}

/// Exactly one item, whole, with no byte after it.
fn well_formed(bytes: &[u8]) -> Result<(), ErrorCode> {
    let mut input = Decoder::new(bytes);
    input.skip().map_err(malformed)?;
    if input.position() == bytes.len() { Ok(()) } else { Err(ErrorCode::InvalidArgument) }
}

/// Calls `entry` for each key of a map, whose value it must consume.
fn entries<'a>(
    input: &mut Decoder<'a>,
    mut entry: impl FnMut(&'a str, &mut Decoder<'a>) -> Result<(), ErrorCode>,
) -> Result<(), ErrorCode> {
    let mut left = input.map().map_err(malformed)?;
    loop {
        match left.as_mut() {
            Some(0) => return Ok(()),
            Some(count) => *count -= 1,
            None if input.datatype().map_err(malformed)? == Type::Break => {
                return input.skip().map_err(malformed);
            }
            None => {}
        }
        let name = input.str().map_err(malformed)?;
        entry(name, input)?;
    }
}

/// A map whose only field of interest is the number called `field`.
fn number(input: &mut Decoder<'_>, field: &str) -> Result<u16, ErrorCode> {
    let mut found = None;
    entries(input, |name, input| {
        if name == field { assign(&mut found, pcr_number(input)?) } else { input.skip().map_err(malformed) }
    })?;
    found.ok_or(ErrorCode::InvalidArgument)
}

/// QEMU takes one-octet numbers only, whatever their value. A longer one is in
/// shortest form only above 255: no register has it.
fn pcr_number(input: &mut Decoder<'_>) -> Result<u16, ErrorCode> {
    let kind = input.datatype().map_err(malformed)?;
    let value = input.u16().map_err(malformed)?;
    match kind {
        Type::U8 => Ok(value),
        _ if value > 0xff => Ok(value),
        _ => Err(ErrorCode::InvalidArgument),
    }
}

fn claim<'a>(input: &mut Decoder<'a>) -> Result<Option<&'a [u8]>, ErrorCode> {
    if input.datatype().map_err(malformed)? == Type::Null {
        input.null().map_err(malformed)?;
        return Ok(None);
    }
    let data = octets(input)?;
    if data.len() > FIELD_MAX { Err(ErrorCode::InputTooLarge) } else { Ok(Some(data)) }
}

/// A byte or text string in one piece.
fn octets<'a>(input: &mut Decoder<'a>) -> Result<&'a [u8], ErrorCode> {
    match input.datatype().map_err(malformed)? {
        Type::String => input.str().map(str::as_bytes).map_err(malformed),
        _ => input.bytes().map_err(malformed),
    }
}

fn assign<T>(place: &mut Option<T>, value: T) -> Result<(), ErrorCode> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(ErrorCode::InvalidArgument),
    }
}

/// The code for a name that does not fit the form in which it came.
fn refuse(name: &str) -> ErrorCode {
    const KNOWN: [&str; 7] =
        ["DescribeNSM", "GetRandom", "DescribePCR", "ExtendPCR", "LockPCR", "LockPCRs", "Attestation"];
    if KNOWN.contains(&name) { ErrorCode::InvalidArgument } else { ErrorCode::InvalidOperation }
}

fn malformed(_: decode::Error) -> ErrorCode {
    ErrorCode::InvalidArgument
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(hex_text: &str) -> Result<String, ErrorCode> {
        let bytes = hex::decode(hex_text.replace(' ', "")).unwrap();
        Request::decode(&bytes).map(|request| format!("{request:?}"))
    }

    #[test]
    fn the_bytes_that_the_official_client_sends_are_read() {
        for (bytes, expected) in [
            ("69 47657452616e646f6d", "GetRandom"),
            ("6b 44657363726962654e534d", "DescribeNsm"),
            ("a1 6b4465736372696265504352 a1 65696e646578 00", "DescribePcr { index: 0 }"),
            (
                "a1 69457874656e64504352 a2 65696e646578 10 6464617461 420102",
                "ExtendPcr { index: 16, data: [1, 2] }",
            ),
            ("a1 674c6f636b504352 a1 65696e646578 10", "LockPcr { index: 16 }"),
            ("a1 684c6f636b50435273 a1 6572616e6765 1820", "LockPcrs { range: 32 }"),
            ("a1 684c6f636b50435273 a1 6572616e6765 19012c", "LockPcrs { range: 300 }"),
            (
                "a1 6b4174746573746174696f6e a3 69757365725f64617461 f6 656e6f6e6365 4101 6a7075626c69635f6b6579 f6",
                "Attestation(Claims { user_data: None, nonce: Some([1]), public_key: None })",
            ),
        ] {
            assert_eq!(decoded(bytes).as_deref(), Ok(expected), "{bytes}");
        }
    }

    #[test]
    fn what_both_published_readers_accept_is_accepted() {
        for bytes in [
            // fields in the other order, then data as text
            "a1 69457874656e64504352 a2 6464617461 420102 65696e646578 10",
            "a1 69457874656e64504352 a2 65696e646578 10 6464617461 626869",
            // an unknown field, indefinite-length maps, all claims absent
            "a1 674c6f636b504352 a2 6178 8101 65696e646578 10",
            "bf 674c6f636b504352 bf 65696e646578 10 ff ff",
            "a1 6b4174746573746174696f6e a0",
            // a one-octet number that would fit in the head
            "a1 674c6f636b504352 a1 65696e646578 1810",
        ] {
            assert!(decoded(bytes).is_ok(), "{bytes}: {:?}", decoded(bytes));
        }
    }

    #[test]
    fn malformed_requests_are_refused_by_kind() {
        use ErrorCode::{InvalidArgument, InvalidOperation};
        for (bytes, code, why) in [
            ("", InvalidArgument, "nothing"),
            ("ff", InvalidArgument, "a lone break"),
            ("00", InvalidArgument, "a number"),
            ("a0", InvalidArgument, "an empty map"),
            ("69 47657452616e646f", InvalidArgument, "cut short"),
            ("69 47657452616e646f6d 00", InvalidArgument, "a byte too many"),
            ("7f 69 47657452616e646f6d ff", InvalidArgument, "a text in pieces"),
            ("a1 69 47657452616e646f6d f6", InvalidArgument, "a bare command as a map"),
            ("674c6f636b504352", InvalidArgument, "a command without its fields"),
            ("a1 674c6f636b504352 a0", InvalidArgument, "no index"),
            ("a1 674c6f636b504352 80", InvalidArgument, "an array for a map"),
            ("a1 674c6f636b504352 a1 65696e646578 20", InvalidArgument, "a negative index"),
            ("a1 674c6f636b504352 a1 65696e646578 190010", InvalidArgument, "an index not in shortest form"),
            ("a1 674c6f636b504352 a1 65696e646578 1a00010000", InvalidArgument, "an index above 16 bits"),
            ("a1 674c6f636b504352 a2 65696e646578 10 65696e646578 11", InvalidArgument, "an index twice"),
            ("a1 674c6f636b504352 a1 00 10", InvalidArgument, "a number as a key"),
            (
                "a2 674c6f636b504352 a1 65696e646578 10 674c6f636b504352 a1 65696e646578 11",
                InvalidArgument,
                "two commands",
            ),
            ("a1 69457874656e64504352 a1 65696e646578 10", InvalidArgument, "no data"),
            (
                "a1 69457874656e64504352 a2 65696e646578 10 6464617461 5f4101ff",
                InvalidArgument,
                "data in pieces",
            ),
            ("a1 6b4174746573746174696f6e a1 656e6f6e6365 8101", InvalidArgument, "an array as nonce"),
            ("c0 69 47657452616e646f6d", InvalidArgument, "a tag"),
            ("64 4e6f6e65", InvalidOperation, "no such command"),
            ("a1 64 4e6f6e65 a0", InvalidOperation, "no such command with fields"),
        ] {
            assert_eq!(decoded(bytes), Err(code), "{why}");
        }
    }

    #[test]
    fn nesting_and_huge_counts_are_bounded_by_the_request() {
        assert!(Request::decode(&[0x81; REQUEST_MAX]).is_err());
        assert!(Request::decode(&[0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert_eq!(Request::decode(&[0; REQUEST_MAX + 1]), Err(ErrorCode::InputTooLarge));
    }
}
