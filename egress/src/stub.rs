//! What a stub resolver says to a name server, and reads of its answer.
//!
//! ```text
//! Question ─ bytes ─▶ name server ─ bytes ─▶ Question::read ─▶ addresses, time to live
//! ```
//! An answer counts only when it repeats the question bit by bit: its number and
//! the case of every letter are random, so that it is hard to forge. Of its
//! records only those count that the question leads to by aliases. Sources:
//! RFC 1035, RFC 2308, RFC 5452, draft-vixie-dnsext-dns0x20.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Name;

/// Bytes of an answer over UDP: what fits every path (DNS flag day 2020).
pub const LONGEST_DATAGRAM: usize = 1232;

const HEADER: usize = 12;
const CLASS_IN: u16 = 1;
const A: u16 = 1;
const CNAME: u16 = 5;
const SOA: u16 = 6;
const AAAA: u16 = 28;
const OPT: u16 = 41;
/// Longer chains of aliases are given up.
const MOST_ALIASES: usize = 16;

/// Which addresses are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4, by A records.
    Four,
    /// IPv6, by AAAA records.
    Six,
}

/// One question, as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    bytes: Vec<u8>,
    /// Of the question section, within `bytes`.
    end: usize,
    kind: u16,
}

/// What a name server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// The addresses and for how many seconds they hold. None: there are none of this
    /// family, for so many seconds.
    Addresses(Vec<IpAddr>, u32),
    /// There is no such name, for so many seconds.
    NoSuchName(u32),
    /// The answer does not fit a datagram: ask again over TCP.
    Truncated,
    /// It cannot, or will not, say: the code of RFC 1035, section 4.1.1.
    Failed(u8),
}

/// Bytes that do not answer the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// Not this question: late, or forged. Worth waiting for the right one.
    #[error("it answers another question")]
    Another,
    /// This question, and then nonsense.
    #[error("it cannot be read")]
    Malformed,
}

impl Question {
    /// Asks for the addresses of `name`. `random` chooses the number and the
    /// case of the letters.
    pub fn new(name: &Name, family: Family, random: [u8; 32]) -> Question {
        let kind = if family == Family::Four { A } else { AAAA };
        // Recursion is desired; one question, one additional record.
        let mut bytes = vec![random[0], random[1], 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        let upper = |index: usize| random[2 + index / 8 % 30] >> (index % 8) & 1 == 1;
        for label in name.as_str().split('.') {
            bytes.push(u8::try_from(label.len()).unwrap_or(0));
            for byte in label.bytes() {
                let index = bytes.len();
                bytes.push(if upper(index) { byte.to_ascii_uppercase() } else { byte });
            }
        }
        bytes.push(0);
        bytes.extend(kind.to_be_bytes());
        bytes.extend(CLASS_IN.to_be_bytes());
        let end = bytes.len();
        // RFC 6891: the root's name, OPT, the size of a datagram, no flags, no data.
        bytes.push(0);
        bytes.extend(OPT.to_be_bytes());
        bytes.extend((LONGEST_DATAGRAM as u16).to_be_bytes());
        bytes.extend([0; 6]);
        Question { bytes, end, kind }
    }

    /// The message to send.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What `answer` says to this question.
    pub fn read(&self, answer: &[u8]) -> Result<Said, NoAnswer> {
        let header: &[u8; HEADER] = answer.first_chunk().ok_or(NoAnswer::Another)?;
        let is_answer = header[..2] == self.bytes[..2] && header[2] & 0xF8 == 0x80;
        let repeated =
            header[4..6] == [0, 1] && answer.get(HEADER..self.end) == self.bytes.get(HEADER..self.end);
        let code = header[3] & 0x0F;
        // A server that does not understand the question need not repeat it.
        if is_answer && matches!(code, 1 | 2 | 4 | 5) {
            return Ok(Said::Failed(code));
        }
        if !is_answer || !repeated {
            return Err(NoAnswer::Another);
        }
        match code {
            0 | 3 if header[2] & 2 != 0 => Ok(Said::Truncated),
            0 => self.addresses(answer).ok_or(NoAnswer::Malformed),
            3 => Ok(Said::NoSuchName(self.denied_for(answer).unwrap_or(0))),
            other => Ok(Said::Failed(other)),
        }
    }

    fn addresses(&self, answer: &[u8]) -> Option<Said> {
        let records = Record::read_all(answer, self.end, u16::from_be_bytes([answer[6], answer[7]]))?;
        let mut name = Spelt::read(answer, HEADER)?.0;
        let (mut addresses, mut ttl) = (Vec::new(), u32::MAX);
        for _ in 0..MOST_ALIASES {
            let own = records.iter().filter(|record| record.name == name);
            for record in own.clone().filter(|record| record.kind == self.kind) {
                addresses.push(record.address()?);
                ttl = ttl.min(record.ttl);
            }
            let alias = own.clone().find(|record| record.kind == CNAME);
            let Some(alias) = alias.filter(|_| addresses.is_empty()) else { break };
            ttl = ttl.min(alias.ttl);
            name = Spelt::read(answer, alias.data_at)?.0;
        }
        if addresses.is_empty() {
            ttl = self.denied_for(answer).unwrap_or(0).min(ttl);
        }
        Some(Said::Addresses(addresses, ttl))
    }

    /// Seconds for which a denial holds: the zone's SOA record among the authorities
    /// says it (RFC 2308, section 5), and without one it does not hold at all.
    fn denied_for(&self, answer: &[u8]) -> Option<u32> {
        let [.., answers, more_answers, authorities, more] = *answer.first_chunk::<10>()?;
        let count = u16::from_be_bytes([answers, more_answers])
            .checked_add(u16::from_be_bytes([authorities, more]))?;
        let records = Record::read_all(answer, self.end, count)?;
        let soa = records.iter().find(|record| record.kind == SOA)?;
        Some(u32::from_be_bytes(*soa.data.last_chunk()?).min(soa.ttl))
    }
}

/// A name's labels in lower case, each with its length before it.
#[derive(Debug, PartialEq, Eq)]
struct Spelt(Vec<u8>);

impl Spelt {
    /// The name at `at` and where the message goes on after it. References lead
    /// backwards only (RFC 1035, section 4.1.4), so none is followed for ever.
    fn read(message: &[u8], at: usize) -> Option<(Spelt, usize)> {
        let (mut labels, mut at, mut end) = (Vec::new(), at, None);
        let mut before = at;
        loop {
            let length = *message.get(at)?;
            match length >> 6 {
                0 => {
                    let label = message.get(at..=at + usize::from(length))?;
                    at += label.len();
                    if length == 0 {
                        return Some((Spelt(labels), end.unwrap_or(at)));
                    }
                    labels.extend(label.to_ascii_lowercase());
                    if labels.len() > 254 {
                        return None;
                    }
                }
                3 => {
                    let target = usize::from(length & 0x3F) << 8 | usize::from(*message.get(at + 1)?);
                    end = end.or(Some(at + 2));
                    if target >= before {
                        return None;
                    }
                    (at, before) = (target, target);
                }
                _ => return None,
            }
        }
    }
}

struct Record<'a> {
    name: Spelt,
    kind: u16,
    ttl: u32,
    data: &'a [u8],
    data_at: usize,
}

impl Record<'_> {
    fn read_all(message: &[u8], at: usize, count: u16) -> Option<Vec<Record<'_>>> {
        let (mut records, mut at) = (Vec::new(), at);
        for _ in 0..count {
            let (name, head) = Spelt::read(message, at)?;
            let &[kind @ .., _, _, _, _, _, _, _, _] = message.get(head..head + 10)?.first_chunk::<10>()?;
            let class = [message[head + 2], message[head + 3]];
            let ttl = u32::from_be_bytes(*message.get(head + 4..)?.first_chunk()?);
            let length = u16::from_be_bytes(*message.get(head + 8..)?.first_chunk()?);
            let data_at = head + 10;
            let data = message.get(data_at..data_at + usize::from(length))?;
            at = data_at + data.len();
            if u16::from_be_bytes(class) == CLASS_IN {
                records.push(Record { name, kind: u16::from_be_bytes(kind), ttl, data, data_at });
            }
        }
        Some(records)
    }

    fn address(&self) -> Option<IpAddr> {
        match self.kind {
            A => <[u8; 4]>::try_from(self.data).ok().map(|octets| Ipv4Addr::from(octets).into()),
            _ => <[u8; 16]>::try_from(self.data).ok().map(|octets| Ipv6Addr::from(octets).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn question() -> Question {
        Question::new(&"www.example.com".parse().unwrap(), Family::Four, [0xA5; 32])
    }

    /// An answer with these flags and records: name, kind, ttl, data.
    fn answer(question: &Question, flags: [u8; 2], records: &[(&[u8], u16, u32, &[u8])]) -> Vec<u8> {
        let mut bytes = question.bytes[..2].to_vec();
        bytes.extend(flags);
        bytes.extend([0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
        bytes.extend(&question.bytes[HEADER..question.end]);
        for (name, kind, ttl, data) in records {
            bytes.extend(*name);
            bytes.extend(kind.to_be_bytes());
            bytes.extend(CLASS_IN.to_be_bytes());
            bytes.extend(ttl.to_be_bytes());
            bytes.extend((data.len() as u16).to_be_bytes());
            bytes.extend(*data);
        }
        bytes
    }

    const ASKED: &[u8] = &[0xC0, 12];
    const GOOD: [u8; 2] = [0x81, 0x80];
    const ALIAS: &[u8] = b"\x03cdn\x03net\x00";

    #[test]
    fn addresses_are_read_with_the_shortest_time_along_the_aliases() {
        let question = question();
        let plain = answer(&question, GOOD, &[(ASKED, A, 60, &[1, 2, 3, 4]), (ASKED, A, 30, &[1, 2, 3, 5])]);
        let both = vec!["1.2.3.4".parse().unwrap(), "1.2.3.5".parse().unwrap()];
        assert_eq!(question.read(&plain), Ok(Said::Addresses(both, 30)));
        let aliased = answer(
            &question,
            GOOD,
            &[
                (b"\x03CDN\x03net\x00", A, 60, &[9, 9, 9, 9]),
                (ASKED, CNAME, 5, ALIAS),
                (b"\x05other\x03net\x00", A, 1, &[6, 6, 6, 6]),
            ],
        );
        assert_eq!(question.read(&aliased), Ok(Said::Addresses(vec!["9.9.9.9".parse().unwrap()], 5)));
        let none = answer(&question, GOOD, &[(ASKED, AAAA, 60, &[0; 16])]);
        assert_eq!(question.read(&none), Ok(Said::Addresses(vec![], 0)));
    }

    #[test]
    fn a_denial_holds_as_long_as_the_zone_says_and_without_its_word_not_at_all() {
        let question = question();
        // Two names and five numbers, the last of which is the minimum.
        let soa = |minimum: u32| [&b"\x02ns\x00\x00"[..], &[0; 16], &minimum.to_be_bytes()].concat();
        let denial = |flags, ttl, minimum| {
            let mut bytes = answer(&question, flags, &[(ALIAS, SOA, ttl, &soa(minimum))]);
            // The record is one of the authorities.
            bytes.swap(7, 9);
            question.read(&bytes)
        };
        assert_eq!(denial([0x81, 0x83], 900, 60), Ok(Said::NoSuchName(60)));
        assert_eq!(denial([0x81, 0x83], 30, 60), Ok(Said::NoSuchName(30)));
        assert_eq!(denial(GOOD, 900, 7), Ok(Said::Addresses(vec![], 7)));
        let mut cut = answer(&question, [0x81, 0x83], &[]);
        cut[9] = 1;
        assert_eq!(question.read(&cut), Ok(Said::NoSuchName(0)));
    }

    #[test]
    fn only_this_question_s_answer_counts() {
        let question = question();
        let good = answer(&question, GOOD, &[(ASKED, A, 60, &[1, 2, 3, 4])]);
        for at in (0..2).chain(HEADER..question.end) {
            let mut other = good.clone();
            other[at] ^= 0x20;
            assert_eq!(question.read(&other), Err(NoAnswer::Another), "byte {at}");
        }
        assert_eq!(question.read(question.bytes()), Err(NoAnswer::Another), "the question itself");
        assert_eq!(question.read(b"x"), Err(NoAnswer::Another));
        let spelt = String::from_utf8_lossy(&question.bytes[HEADER..question.end]).into_owned();
        assert!(spelt.contains(char::is_uppercase) && spelt.contains(char::is_lowercase), "{spelt}");
    }

    #[test]
    fn every_other_word_of_a_server_is_told_apart() {
        let question = question();
        let said =
            |flags, records: &[(&[u8], u16, u32, &[u8])]| question.read(&answer(&question, flags, records));
        assert_eq!(said([0x81, 0x83], &[]), Ok(Said::NoSuchName(0)));
        assert_eq!(said([0x83, 0x80], &[]), Ok(Said::Truncated));
        assert_eq!(said([0x81, 0x82], &[]), Ok(Said::Failed(2)));
        assert_eq!(said([0x81, 0x85], &[]), Ok(Said::Failed(5)));
        assert_eq!(said(GOOD, &[(ASKED, A, 60, &[1, 2, 3])]), Err(NoAnswer::Malformed));
        // Aliases in a circle, and a reference to itself.
        assert_eq!(said(GOOD, &[(ASKED, CNAME, 5, ASKED)]), Ok(Said::Addresses(vec![], 0)));
        let own = [0xC0, question.end as u8];
        assert_eq!(said(GOOD, &[(&own, A, 60, &[1, 2, 3, 4])]), Err(NoAnswer::Malformed));
    }

    #[test]
    fn an_answer_that_is_cut_is_malformed_and_never_a_panic() {
        let question = question();
        let whole = answer(&question, GOOD, &[(ASKED, CNAME, 5, ALIAS), (ALIAS, A, 60, &[1, 2, 3, 4])]);
        for length in question.end..whole.len() {
            assert_eq!(question.read(&whole[..length]), Err(NoAnswer::Malformed), "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(tail in proptest::collection::vec(any::<u8>(), 0..300), count in 0u8..9) {
            let question = question();
            let mut bytes = answer(&question, GOOD, &[]);
            bytes[7] = count;
            bytes.extend(&tail);
            let _ = question.read(&bytes);
            let _ = question.read(&tail);
        }
    }
}
