//! Reads the head of an HTTP CONNECT request.
//!
//! Only the authority form is a request here, and it names one host and one
//! port: an absolute URL, userinfo, or a Host header that says something else
//! are refused, because proxies and servers have read them differently.
//! Source: RFC 9110, section 9.3.6.

use crate::{Target, TargetError};

/// Bytes of a request's head.
pub const LONGEST_HEAD: usize = 8 * 1024;
const MOST_HEADERS: usize = 64;

/// Why a request is not carried out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Longer than [`LONGEST_HEAD`].
    #[error("the request's head is longer than {LONGEST_HEAD} bytes")]
    TooLong,
    /// Not the syntax of HTTP/1.
    #[error("the request is not HTTP/1: {0}")]
    NotHttp(httparse::Error),
    /// Another method, usually GET with an absolute URL.
    #[error("only CONNECT is carried out here; use https, or the name without a proxy")]
    Method,
    /// No host and port.
    #[error("the target cannot be understood: {0}")]
    Target(#[from] TargetError),
    /// Two readings of one request.
    #[error("the Host header does not name the target")]
    HostDiffers,
    /// A body, which CONNECT has not.
    #[error("a CONNECT request has no body")]
    Body,
}

impl ConnectError {
    /// The status to answer with.
    pub fn status(&self) -> &'static str {
        match self {
            ConnectError::TooLong | ConnectError::NotHttp(httparse::Error::TooManyHeaders) => {
                "431 Request Header Fields Too Large"
            }
            ConnectError::Method => "405 Method Not Allowed",
            _ => "400 Bad Request",
        }
    }
}

/// A request whose head is complete.
#[derive(Debug, PartialEq, Eq)]
pub struct Connect {
    /// Where to.
    pub target: Target,
    /// Bytes of the head; what follows belongs to the connection.
    pub length: usize,
}

/// Reads a head from the first bytes of a connection; `None` until it is whole.
pub fn read(bytes: &[u8]) -> Result<Option<Connect>, ConnectError> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let head = &bytes[..bytes.len().min(LONGEST_HEAD)];
    let length = match request.parse(head).map_err(ConnectError::NotHttp)? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial if head.len() == LONGEST_HEAD => return Err(ConnectError::TooLong),
        httparse::Status::Partial => return Ok(None),
    };
    if request.method != Some("CONNECT") {
        return Err(ConnectError::Method);
    }
    let target: Target = request.path.unwrap_or_default().parse()?;
    for header in request.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("transfer-encoding") || (is("content-length") && header.value != b"0") {
            return Err(ConnectError::Body);
        }
        if is("host") && !names(header.value, &target) {
            return Err(ConnectError::HostDiffers);
        }
    }
    Ok(Some(Connect { target, length }))
}

/// A Host header may leave the port out.
fn names(host: &[u8], target: &Target) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let host = host.trim();
    host.parse::<Target>().is_ok_and(|named| named == *target)
        || host.parse::<crate::Host>().is_ok_and(|named| named == target.host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(text: &str) -> ConnectError {
        read(text.as_bytes()).unwrap_err()
    }

    #[test]
    fn the_authority_form_is_understood_however_it_arrives() {
        let text =
            b"CONNECT Example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nUser-Agent: x\r\n\r\n\x16\x03";
        let head = text.len() - 2;
        for length in 0..head {
            assert_eq!(read(&text[..length]), Ok(None), "after {length} bytes");
        }
        let whole = read(text).unwrap().unwrap();
        assert_eq!((whole.target.to_string().as_str(), whole.length), ("example.com:443", head));
        for host in ["example.com", "EXAMPLE.com."] {
            let text = format!("CONNECT example.com:443 HTTP/1.0\r\nHost: {host}\r\n\r\n");
            assert!(read(text.as_bytes()).unwrap().is_some(), "{host}");
        }
        assert!(read(b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\n\r\n").unwrap().is_some());
    }

    #[test]
    fn every_other_request_is_refused_with_its_reason() {
        for line in [
            "GET http://example.com/ HTTP/1.1",
            "GET http://good.com:80@169.254.169.254/ HTTP/1.1",
            "OPTIONS * HTTP/1.1",
        ] {
            assert_eq!(error(&format!("{line}\r\n\r\n")), ConnectError::Method, "{line}");
        }
        for target in [
            "http://example.com:443",
            "good.com@evil.com:443",
            "good.com:443@169.254.169.254:80",
            "example.com",
            "example.com:0",
            "2130706433:80",
            "0x7f000001:80",
            "0177.0.0.1:80",
            "127.1:80",
            "//example.com:443",
            "example.com:443/path",
            "/",
        ] {
            let refused = error(&format!("CONNECT {target} HTTP/1.1\r\n\r\n"));
            assert!(matches!(refused, ConnectError::Target(_)), "{target}: {refused}");
        }
        let head = "CONNECT a.com:443 HTTP/1.1\r\n";
        assert_eq!(error(&format!("{head}Host: b.com:443\r\n\r\n")), ConnectError::HostDiffers);
        assert_eq!(error(&format!("{head}Host: a.com:80\r\n\r\n")), ConnectError::HostDiffers);
        assert_eq!(error(&format!("{head}Content-Length: 5\r\n\r\n")), ConnectError::Body);
        assert_eq!(error(&format!("{head}Transfer-Encoding: chunked\r\n\r\n")), ConnectError::Body);
        assert!(matches!(error("\x16\x03\x01\x02"), ConnectError::NotHttp(_)));
        let headers = "X: y\r\n".repeat(MOST_HEADERS + 1);
        assert!(matches!(error(&format!("{head}{headers}\r\n")), ConnectError::NotHttp(_)));
    }

    #[test]
    fn a_head_without_an_end_is_given_up_at_its_limit() {
        let long = format!("CONNECT a.com:443 HTTP/1.1\r\nX: {}", "y".repeat(LONGEST_HEAD));
        assert_eq!(read(&long.as_bytes()[..LONGEST_HEAD - 1]), Ok(None));
        assert_eq!(error(&long), ConnectError::TooLong);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
            let _ = read(&[b"CONNECT ", bytes.as_slice()].concat());
        }
    }
}
