//! `enclavectl egress check` as a user runs it.
#![allow(clippy::unwrap_used)] // a broken fixture ends the test

use std::process::{Command, Output};

use serde_json::Value;

const POLICY: &str = "egress:
  - api.example.com:443
  - '*.cdn.example.com:443'
  - db.internal:5432
  - 10.1.0.0/16:5432
  - '!old.cdn.example.com:*'
  - wide.example.com:8000-8016
";

fn check(policy: &str, arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("policy.yaml");
    std::fs::write(&file, policy).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_enclavectl"));
    command.args(["egress", "check"]).arg(&file).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn the_deciding_rule_is_named_and_the_exit_code_is_the_verdict() {
    for (target, code, words) in [
        ("api.example.com:443", 0, "allowed (rule 1: api.example.com:443)"),
        ("API.example.com.:443", 0, "allowed (rule 1"),
        ("api.example.com:80", 1, "no rule names it"),
        ("a.cdn.example.com:443", 0, "rule 2: *.cdn.example.com:443"),
        ("old.cdn.example.com:443", 1, "denied by a rule (rule 5: !old.cdn.example.com:*)"),
        ("169.254.169.254:80", 1, "link-local"),
        ("[::ffff:169.254.169.254]:80", 1, "link-local"),
        ("10.1.2.3:5432", 0, "rule 4: 10.1.0.0/16:5432"),
        ("10.1.2.3:5432", 0, "through the agent's proxy only (HTTP CONNECT, SOCKS5): an address"),
        ("api.example.com:443", 0, "reached by its name"),
        ("wide.example.com:8001", 0, "proxy only (HTTP CONNECT, SOCKS5): its rule has more than 16 ports"),
        ("0x7f.1:80", 64, "looks like an address but is none"),
        ("api.example.com", 64, "no port"),
    ] {
        let output = check(POLICY, &[target]);
        assert_eq!(output.status.code(), Some(code), "{target}: {}", said(&output));
        assert!(said(&output).contains(words), "{target}: {}", said(&output));
    }
}

#[test]
fn an_allowed_name_is_not_reachable_at_an_address_that_nobody_named() {
    let rebound = check(POLICY, &["api.example.com:443", "--address", "169.254.169.254", "--json"]);
    assert_eq!(rebound.status.code(), Some(1), "{}", said(&rebound));
    let verdict: Value = serde_json::from_slice(&rebound.stdout).unwrap();
    assert_eq!(verdict["allowed"], false);
    assert_eq!(verdict["name"]["allowed"], true);
    assert_eq!(verdict["addresses"]["169.254.169.254"]["allowed"], false);

    let private = check(POLICY, &["db.internal:5432", "--address", "10.1.2.3"]);
    assert_eq!(private.status.code(), Some(0), "{}", said(&private));
}

#[test]
fn the_list_of_awss_vsock_proxy_is_read_as_it_is() {
    let list = "allowlist:\n- {address: kms.eu-west-1.amazonaws.com, port: 443}\n- {address: 10.1.2.3, port: 5432}\n";
    for (target, code, words) in [
        ("kms.eu-west-1.amazonaws.com:443", 0, "allowed (rule 1: kms.eu-west-1.amazonaws.com:443)"),
        ("kms.eu-west-1.amazonaws.com:443", 0, "through a tunnel"),
        ("10.1.2.3:5432", 0, "rule 2"),
        ("kms.eu-west-2.amazonaws.com:443", 1, "no rule names it"),
    ] {
        let output = check(list, &[target]);
        assert_eq!(output.status.code(), Some(code), "{target}: {}", said(&output));
        assert!(said(&output).contains(words), "{target}: {}", said(&output));
    }
    let wrong = check("allowlist: [{address: a.com, port: 1}, {address: 0x7f.1, port: 1}]", &["a.com:1"]);
    assert_eq!(wrong.status.code(), Some(64));
    assert!(said(&wrong).contains("entry 2"), "{}", said(&wrong));
}

#[test]
fn a_wrong_policy_is_a_usage_error_with_the_rules_number() {
    let output = check("egress: ['a.com:443', 'b.com']\n", &["a.com:443"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(
        said(&output).contains("rule 2") && said(&output).contains("names no ports"),
        "{}",
        said(&output)
    );
}
