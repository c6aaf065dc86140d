//! Promise: requests to KMS are signed as AWS's own SDK signs them.

#[path = "../../../enclavectl/src/kms/sigv4.rs"]
mod sigv4;

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4::SigningParams,
};
use proptest::prelude::*;
use sigv4::{Keys, Signed};

/// 2026-11-24T01:02:03Z.
const NOW: (u64, &str) = (1_795_482_123, "20261124T010203Z");

/// The signature that AWS's crate makes.
fn theirs(keys: &Keys<'_>, signed: &Signed<'_>, body: &[u8]) -> String {
    let identity = Credentials::new(keys.access, keys.secret, keys.token.map(str::to_owned), None, "test").into();
    let params = SigningParams::builder()
        .identity(&identity)
        .region(signed.region)
        .name(signed.service)
        .time(SystemTime::UNIX_EPOCH + Duration::from_secs(NOW.0))
        .settings(SigningSettings::default())
        .build()
        .expect("parameters")
        .into();
    let headers = [("content-type", "application/x-amz-json-1.1"), ("x-amz-target", signed.target)];
    let url = format!("https://{}/", signed.host);
    let request = SignableRequest::new("POST", url, headers.into_iter(), SignableBody::Bytes(body));
    let (_, signature) = sign(request.expect("a request"), &params).expect("a signature").into_parts();
    signature
}

proptest! {
    #[test]
    fn every_request_has_the_signature_that_the_sdk_makes(
        access in "[A-Z0-9]{16,20}",
        secret in "[A-Za-z0-9/+]{40}",
        token in prop::option::of("[A-Za-z0-9/+=]{1,300}"),
        region in "[a-z]{2}-[a-z]{4,9}-[1-9]",
        body in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let keys = Keys { access: &access, secret: &secret, token: token.as_deref() };
        let host = format!("kms.{region}.amazonaws.com");
        let signed = Signed { service: "kms", region: &region, host: &host, target: "TrentService.Sign", now: NOW.1 };
        let headers = sigv4::sign(&keys, &signed, &body);
        let (name, authorization) = headers.last().expect("headers");
        assert_eq!(*name, "authorization");
        let ours = authorization.rsplit('=').next().expect("a signature");
        assert_eq!(ours, theirs(&keys, &signed, &body));
    }
}
