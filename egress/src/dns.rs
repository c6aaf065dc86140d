//! Answers DNS questions about the names that a workload may reach.
//!
//! ```text
//! A      its local address      NXDOMAIN for a name that is not allowed
//! others NODATA: no IPv6 address, no HTTPS or SVCB record that leads past it
//! ```
//! One question a message, as every client asks. Nothing is ever passed on: a
//! name in a question does not leave the enclave. Source: RFC 1035.

use std::net::Ipv4Addr;

use crate::Name;

/// Longest question that is looked at: a name, its type and a few options.
pub const LONGEST_QUERY: usize = 1232;
/// For how long a client may keep an answer, in seconds. Addresses never
/// change; a refusal may end when the shim's policy does.
const TTL: u32 = 60;

const HEADER: usize = 12;
const RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
const RECURSION_DESIRED: u8 = 0x01;
const RECURSION_AVAILABLE: u8 = 0x80;
const CLASS_IN: u16 = 1;
const TYPE_A: u16 = 1;
const TYPE_ANY: u16 = 255;

/// What is known of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It has this address.
    Address(Ipv4Addr),
    /// There is none: the policy does not allow it.
    Nothing,
    /// It would have one, but there is no address left.
    Full,
}

/// RFC 1035, section 4.1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    Good = 0,
    Malformed = 1,
    Failed = 2,
    NoSuchName = 3,
    NotImplemented = 4,
}

/// The answer to `query`; `None` for what is no question at all, so that two
/// servers never answer each other.
pub fn answer(query: &[u8], look_up: impl FnOnce(&Name) -> Found) -> Option<Vec<u8>> {
    let (header, body) = query.split_first_chunk::<HEADER>()?;
    if header[2] & RESPONSE != 0 || query.len() > LONGEST_QUERY {
        return None;
    }
    if header[2] & OPCODE != 0 {
        return Some(reply(header, &[], Code::NotImplemented, None));
    }
    let questions = u16::from_be_bytes([header[4], header[5]]);
    let Some(question) = Question::read(body).filter(|_| questions == 1) else {
        return Some(reply(header, &[], Code::Malformed, None));
    };
    let asked = &body[..question.length];
    let found = match question.name.parse::<Name>() {
        Ok(name) if question.class == CLASS_IN => look_up(&name),
        _ => Found::Nothing,
    };
    Some(match (found, question.kind) {
        (Found::Address(address), TYPE_A | TYPE_ANY) => reply(header, asked, Code::Good, Some(address)),
        (Found::Address(_), _) => reply(header, asked, Code::Good, None),
        (Found::Nothing, _) => reply(header, asked, Code::NoSuchName, None),
        (Found::Full, _) => reply(header, asked, Code::Failed, None),
    })
}

/// The name that a query asks for, for logs.
pub fn asked_name(query: &[u8]) -> Option<String> {
    let (_, body) = query.split_first_chunk::<HEADER>()?;
    Question::read(body).map(|question| question.name)
}

struct Question {
    /// Labels joined by dots, not checked yet.
    name: String,
    kind: u16,
    class: u16,
    /// Bytes of the whole question.
    length: usize,
}

impl Question {
    /// A question that comes first cannot refer to an earlier name, so a
    /// compressed one is malformed.
    fn read(bytes: &[u8]) -> Option<Question> {
        let (mut name, mut at) = (String::new(), 0);
        loop {
            let length = usize::from(*bytes.get(at)?);
            if length > 63 || at > 255 {
                return None;
            }
            let label = bytes.get(at + 1..at + 1 + length)?;
            at += 1 + length;
            if label.is_empty() {
                break;
            }
            // A dot within a label would read as two labels.
            if label.iter().any(|byte| !byte.is_ascii_graphic() || *byte == b'.') {
                return None;
            }
            if !name.is_empty() {
                name.push('.');
            }
            name.extend(label.iter().map(|byte| char::from(*byte)));
        }
        let &[kind_high, kind_low, class_high, class_low] = bytes.get(at..at + 4)?.first_chunk::<4>()?;
        let kind = u16::from_be_bytes([kind_high, kind_low]);
        let class = u16::from_be_bytes([class_high, class_low]);
        Some(Question { name, kind, class, length: at + 4 })
    }
}

fn reply(query: &[u8; HEADER], question: &[u8], code: Code, address: Option<Ipv4Addr>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + question.len() + 16);
    bytes.extend(&query[..2]);
    bytes.push(RESPONSE | (query[2] & (OPCODE | RECURSION_DESIRED)));
    bytes.push(RECURSION_AVAILABLE | code as u8);
    for count in [u16::from(!question.is_empty()), u16::from(address.is_some()), 0, 0] {
        bytes.extend(count.to_be_bytes());
    }
    bytes.extend(question);
    if let Some(address) = address {
        // The question's name, by reference (RFC 1035, section 4.1.4).
        bytes.extend((0xC000 | HEADER as u16).to_be_bytes());
        bytes.extend(TYPE_A.to_be_bytes());
        bytes.extend(CLASS_IN.to_be_bytes());
        bytes.extend(TTL.to_be_bytes());
        bytes.extend(4u16.to_be_bytes());
        bytes.extend(address.octets());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AAAA: u16 = 28;
    const HTTPS: u16 = 65;
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 7);

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut bytes = vec![0xAB, 0xCD, RECURSION_DESIRED, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            bytes.push(label.len() as u8);
            bytes.extend(label.bytes());
        }
        bytes.push(0);
        bytes.extend(kind.to_be_bytes());
        bytes.extend(CLASS_IN.to_be_bytes());
        bytes
    }

    fn look_up(name: &Name) -> Found {
        match name.as_str() {
            "api.example.com" => Found::Address(ADDRESS),
            "full.example.com" => Found::Full,
            _ => Found::Nothing,
        }
    }

    /// Response code, number of answers, last four bytes.
    fn outcome(query: &[u8]) -> (u8, u16, [u8; 4]) {
        let answer = answer(query, look_up).unwrap();
        assert_eq!(answer[..2], query[..2], "the id");
        (answer[3] & 0xF, u16::from_be_bytes([answer[6], answer[7]]), *answer.last_chunk().unwrap())
    }

    #[test]
    fn an_allowed_name_has_one_address_and_nothing_else() {
        assert_eq!(outcome(&query("api.example.com", TYPE_A)), (0, 1, ADDRESS.octets()));
        assert_eq!(outcome(&query("API.Example.COM", TYPE_A)), (0, 1, ADDRESS.octets()));
        for kind in [AAAA, HTTPS, 64, 15, 16] {
            let (code, answers, _) = outcome(&query("api.example.com", kind));
            assert_eq!((code, answers), (0, 0), "type {kind}");
        }
    }

    #[test]
    fn the_question_comes_back_as_it_was_spelt() {
        let asked = query("aPi.exAmple.com", TYPE_A);
        let answer = answer(&asked, look_up).unwrap();
        assert_eq!(answer[HEADER..asked.len()], asked[HEADER..]);
    }

    #[test]
    fn every_refusal_has_its_code() {
        assert_eq!(outcome(&query("evil.example.com", TYPE_A)).0, Code::NoSuchName as u8);
        assert_eq!(outcome(&query("full.example.com", TYPE_A)).0, Code::Failed as u8);
        assert_eq!(outcome(&query("0x7f.1", TYPE_A)).0, Code::NoSuchName as u8, "an ambiguous name");
        let mut chaos = query("api.example.com", TYPE_A);
        *chaos.last_mut().unwrap() = 3;
        assert_eq!(outcome(&chaos).0, Code::NoSuchName as u8);
        let mut notify = query("api.example.com", TYPE_A);
        notify[2] = 4 << 3;
        assert_eq!(outcome(&notify).0, Code::NotImplemented as u8);
        let mut two = query("api.example.com", TYPE_A);
        two[5] = 2;
        assert_eq!(outcome(&two).0, Code::Malformed as u8);
    }

    #[test]
    fn what_is_no_question_is_not_answered_and_a_broken_one_is_malformed() {
        assert_eq!(answer(b"short", look_up), None);
        let mut response = query("api.example.com", TYPE_A);
        response[2] |= RESPONSE;
        assert_eq!(answer(&response, look_up), None);
        let mut pointer = query("api.example.com", TYPE_A);
        pointer[HEADER] = 0xC0;
        assert_eq!(outcome(&pointer).0, Code::Malformed as u8);
        let whole = query("api.example.com", TYPE_A);
        for length in HEADER..whole.len() {
            assert_eq!(outcome(&whole[..length]).0, Code::Malformed as u8, "cut at {length}");
        }
        let dotted = query("api.example.com", TYPE_A);
        let dotted: Vec<u8> = dotted.iter().map(|byte| if *byte == b'i' { b'.' } else { *byte }).collect();
        assert_eq!(outcome(&dotted).0, Code::Malformed as u8);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = answer(&bytes, look_up);
        }
    }
}
