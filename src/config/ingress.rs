//! One listener: where it is, and which port of the workload a client gets.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::load::{ConfigError, in_range};

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ingress {
    /// Address and TCP port in the pod. Port 0: the kernel's choice (logged).
    pub(crate) listen: SocketAddr,
    /// The workload's port in the enclave, 1 to 65535. With `sni` or `host`: for
    /// clients that give none of those names; by default they are reset.
    #[serde(default)]
    pub(crate) port: Option<u16>,
    /// Workload's ports by the name that a TLS client asks for, `*.` in front
    /// for all names below. Nothing is decrypted. Default: none.
    #[serde(default)]
    pub(crate) sni: BTreeMap<String, u16>,
    /// The same by the host of the first HTTP/1 request. Default: none.
    #[serde(default)]
    pub(crate) host: BTreeMap<String, u16>,
    /// Every client comes through a load balancer that sends a PROXY protocol
    /// v2 header; others are reset. Default: false.
    #[serde(default)]
    pub(crate) accept_proxy: bool,
    /// The workload gets a PROXY protocol v2 header: its image must list the port
    /// under `proxy_protocol`. Default: false.
    #[serde(default)]
    pub(crate) send_proxy: bool,
}

/// Where a client says whom it wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameIn {
    /// The server name of a TLS ClientHello.
    Sni,
    /// The host of an HTTP/1 request.
    Host,
}

impl Ingress {
    /// What has to be read to know the port.
    pub(crate) fn routed_by(&self) -> Option<NameIn> {
        match (self.sni.is_empty(), self.host.is_empty()) {
            (false, _) => Some(NameIn::Sni),
            (_, false) => Some(NameIn::Host),
            _ => None,
        }
    }

    /// The workload's port for a client that gave this name: the name's own,
    /// that of the nearest wildcard, or `port`.
    pub(crate) fn port_for(&self, name: Option<&str>) -> Option<u16> {
        let routes = if self.sni.is_empty() { &self.host } else { &self.sni };
        let route = name.and_then(|name| {
            let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
            let below = name.match_indices('.').map(|(dot, _)| format!("*{}", &name[dot..]));
            std::iter::once(name.clone()).chain(below).find_map(|name| routes.get(&name))
        });
        route.copied().or(self.port)
    }

    /// Every port that a client of this listener may get.
    fn ports(&self) -> impl Iterator<Item = u16> {
        self.port.into_iter().chain(self.sni.values().copied()).chain(self.host.values().copied())
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let refuse = |knob: &'static str, actual: String, expected: &str| {
            Err(ConfigError::Range { knob, actual, expected: expected.to_owned() })
        };
        if !self.sni.is_empty() && !self.host.is_empty() {
            let expected = "but host is given too: a listener looks for one of the two";
            return refuse("ingress.sni", "given".to_owned(), expected);
        }
        if self.ports().next().is_none() {
            return refuse("ingress.port", "missing".to_owned(), "but must be 1 to 65535");
        }
        for port in self.ports() {
            in_range("ingress.port", port, 1, u16::MAX)?;
            if wire::port::RESERVED.contains(&u32::from(port)) {
                let expected = "but the agent keeps 5700 to 5704 for itself";
                return refuse("ingress.port", port.to_string(), expected);
            }
        }
        for (knob, names) in [("ingress.sni", &self.sni), ("ingress.host", &self.host)] {
            if let Some(name) = names.keys().find(|name| !is_route(name)) {
                let expected =
                    "but must be a host name in lower case, such as www.example.com or *.example.com";
                return refuse(knob, format!("{name:?}"), expected);
            }
        }
        Ok(())
    }
}

/// What [`Ingress::port_for`] can find: anything else would never be reached.
fn is_route(name: &str) -> bool {
    let host = name.strip_prefix("*.").unwrap_or(name);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
    };
    host.len() <= 253 && host.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ingress(yaml: &str) -> Ingress {
        serde_saphyr::from_str(&format!("listen: 127.0.0.1:1\n{yaml}")).unwrap()
    }

    #[test]
    fn the_name_itself_comes_before_the_nearest_wildcard_and_that_before_the_port() {
        let ingress =
            ingress("port: 1\nsni: {a.example.com: 2, '*.example.com': 3, '*.b.example.com': 4, '*.com': 5}");
        for (name, port) in [
            (Some("a.example.com"), 2),
            (Some("A.Example.COM."), 2),
            (Some("c.example.com"), 3),
            (Some("x.a.example.com"), 3),
            (Some("x.b.example.com"), 4),
            (Some("example.com"), 5),
            (Some("com"), 1),
            (Some(""), 1),
            (None, 1),
        ] {
            assert_eq!(ingress.port_for(name), Some(port), "{name:?}");
        }
    }

    #[test]
    fn without_a_port_unknown_names_lead_nowhere() {
        let ingress = ingress("host: {a.example.com: 2}");
        assert_eq!(ingress.port_for(Some("a.example.com")), Some(2));
        assert_eq!((ingress.port_for(Some("b.example.com")), ingress.port_for(None)), (None, None));
        assert_eq!(ingress.routed_by(), Some(NameIn::Host));
    }

    #[test]
    fn what_can_never_be_reached_is_refused() {
        for (yaml, message) in [
            ("", "ingress.port is missing"),
            ("sni: {a: 1}\nhost: {b: 2}", "looks for one of the two"),
            ("sni: {A.example.com: 1}", "lower case"),
            ("sni: {'a.*.com': 1}", "lower case"),
            ("host: {'a.com:80': 1}", "lower case"),
            ("sni: {a.com: 5704}", "5700 to 5704"),
            ("sni: {a.com: 0}", "must be 1 to 65535"),
        ] {
            let error = ingress(yaml).check().unwrap_err().to_string();
            assert!(error.contains(message), "{yaml}: {error}");
        }
    }
}
