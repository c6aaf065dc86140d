use super::*;

fn config(text: &str) -> Config {
    serde_saphyr::from_str(text).unwrap()
}

fn egress(text: &str) -> Egress {
    Egress::new(&config(text), Metrics::default(), CancellationToken::new()).unwrap()
}

fn dial(host: &str, port: u16) -> Dial {
    Dial { stream: 1, host: host.to_owned(), port }
}

#[tokio::test]
async fn without_rules_nothing_is_allowed_and_no_resolver_is_needed() {
    let egress = egress("cpus: 2");
    assert!(egress.names.is_none());
    assert_eq!(egress.connect(&dial("example.com", 443)).await.err(), Some(Undialled::Denied));
    assert_eq!(egress.connect(&dial("1.1.1.1", 443)).await.err(), Some(Undialled::Denied));
}

#[tokio::test]
async fn what_is_not_allowed_is_neither_resolved_nor_connected() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let other = port ^ 1;
    let egress = egress(&format!(
        "egress: ['127.0.0.1:{port}', '!127.0.0.1:{other}']\nresolver: {{servers: ['127.0.0.1:1']}}"
    ));
    assert!(egress.connect(&dial("127.0.0.1", port)).await.is_ok());
    assert!(egress.connect(&dial("::ffff:127.0.0.1", port)).await.is_ok(), "the same address");
    for (host, port, reason) in [
        ("127.0.0.1", other, Undialled::Denied),
        ("127.0.0.2", port, Undialled::Denied),
        ("169.254.169.254", 80, Undialled::Denied),
        ("2130706433", port, Undialled::BadTarget),
        ("0x7f.1", port, Undialled::BadTarget),
        ("127.1", port, Undialled::BadTarget),
        ("a\nb", port, Undialled::BadTarget),
        ("127.0.0.1", 0, Undialled::BadTarget),
    ] {
        assert_eq!(egress.connect(&dial(host, port)).await.err(), Some(reason), "{host}:{port}");
    }
}
