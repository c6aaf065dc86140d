//! Writers of DER and CBOR that also write what no honest encoder would.

/// One DER element with a minimal length.
pub fn der(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match body.len() {
        length @ 0..=0x7f => out.push(length as u8),
        length @ 0x80..=0xff => out.extend([0x81, length as u8]),
        length => out.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    out.extend_from_slice(body);
    out
}

pub fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    der(0x30, &parts.concat())
}

/// OBJECT IDENTIFIER from its encoded body.
pub fn oid(body: &[u8]) -> Vec<u8> {
    der(0x06, body)
}

/// BIT STRING of whole bytes.
pub fn bits(bytes: &[u8]) -> Vec<u8> {
    der(0x03, &[&[0], bytes].concat())
}

/// UTCTime, or GeneralizedTime from 2050 on, of seconds since the epoch.
pub fn time(seconds: i64) -> Vec<u8> {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (mut year, mut left) = (1970, days);
    let length = |year: i64| if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) { 366 } else { 365 };
    while left >= length(year) {
        left -= length(year);
        year += 1;
    }
    let february = if length(year) == 366 { 29 } else { 28 };
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < days {
            break;
        }
        left -= days;
        month += 1;
    }
    let clock = format!("{:02}{:02}{:02}", second / 3600, second / 60 % 60, second % 60);
    match year {
        2050.. => der(0x18, format!("{year:04}{month:02}{:02}{clock}Z", left + 1).as_bytes()),
        _ => der(0x17, format!("{:02}{month:02}{:02}{clock}Z", year % 100, left + 1).as_bytes()),
    }
}

/// A CBOR head in its shortest form.
pub fn head(major: u8, value: u64) -> Vec<u8> {
    let width = match value {
        0..=23 => return vec![major << 5 | value as u8],
        24..=0xff => 1,
        0x100..=0xffff => 2,
        0x1_0000..=0xffff_ffff => 4,
        _ => 8,
    };
    wide_head(major, value, width)
}

/// A CBOR head whose argument takes `width` bytes, needed or not.
pub fn wide_head(major: u8, value: u64, width: usize) -> Vec<u8> {
    let info = 24 + width.trailing_zeros() as u8;
    [&[major << 5 | info], &value.to_be_bytes()[8 - width..]].concat()
}

pub fn uint(value: u64) -> Vec<u8> {
    head(0, value)
}

pub fn bstr(bytes: &[u8]) -> Vec<u8> {
    [&head(2, bytes.len() as u64), bytes].concat()
}

pub fn tstr(text: &str) -> Vec<u8> {
    [&head(3, text.len() as u64), text.as_bytes()].concat()
}

pub fn array(items: &[Vec<u8>]) -> Vec<u8> {
    [head(4, items.len() as u64), items.concat()].concat()
}

/// A definite map from encoded keys to encoded values.
pub fn map(pairs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    [head(5, pairs.len() as u64), entries(pairs)].concat()
}

pub fn entries(pairs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    pairs.iter().flat_map(|(key, value)| [key.as_slice(), value].concat()).collect()
}

pub const NULL: u8 = 0xf6;
