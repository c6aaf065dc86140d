//! Asks the module for the workload and says the outcome in JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use nitro_device::nsm::{Attestation, Description, NsmError, NsmErrorCode, PcrState};
use serde_json::{Value, json};

use super::request::{Fields, Wanted};
use crate::log::chain;
use crate::nsm::{AskError, Lane, Module, Notary};

const JSON: &str = "application/json";

/// Ready to be written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) kind: &'static str,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// `{"error": reason, "code": …}`; the code is that of the status until [`Self::code`].
    pub(super) fn refusal(status: StatusCode, reason: &str) -> Answer {
        let code = match status {
            StatusCode::NOT_FOUND => "not-found",
            StatusCode::METHOD_NOT_ALLOWED => "method",
            StatusCode::PAYLOAD_TOO_LARGE => "too-large",
            _ => "bad-request",
        };
        Answer { status, ..Answer::json(&json!({ "error": reason, "code": code })) }
    }

    /// The same with a code of its own.
    pub(super) fn code(self, code: &str) -> Answer {
        let mut body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["code"] = code.into();
        Answer { status: self.status, ..Answer::json(&body) }
    }

    fn json(value: &Value) -> Answer {
        Answer { status: StatusCode::OK, kind: JSON, body: value.to_string().into_bytes() }
    }
}

pub(super) async fn answer(wanted: Wanted, notary: &Notary) -> Answer {
    let answered = match wanted {
        Wanted::Module => ask(notary, |module| Ok(described(&module.describe()?))).await,
        Wanted::Document { fields, raw } => document(notary, fields, raw).await,
        Wanted::Pcr(index) => ask(notary, move |module| register(module, index)).await,
        Wanted::Extend { index, data } => {
            ask(notary, move |module| {
                module.extend_pcr(index, &data)?;
                register(module, index)
            })
            .await
        }
        Wanted::Lock(index) => {
            ask(notary, move |module| {
                module.lock_pcr(index)?;
                register(module, index)
            })
            .await
        }
        Wanted::Random(count) => random(notary, count).await,
    };
    answered.unwrap_or_else(|error| refused(&error))
}

async fn ask(
    notary: &Notary,
    work: impl FnOnce(&mut dyn Module) -> Result<Value, NsmError> + Send + 'static,
) -> Result<Answer, AskError> {
    Ok(Answer::json(&notary.ask(Lane::Workload, work).await.0?))
}

async fn document(notary: &Notary, fields: Fields, raw: bool) -> Result<Answer, AskError> {
    let sign = move |module: &mut dyn Module| {
        let Fields { user_data, nonce, public_key } = &fields;
        module.attest(&Attestation {
            user_data: user_data.as_deref(),
            nonce: nonce.as_deref(),
            public_key: public_key.as_deref(),
        })
    };
    let document = notary.ask(Lane::Workload, sign).await.0?;
    Ok(match raw {
        true => Answer { status: StatusCode::OK, kind: "application/cbor", body: document },
        false => Answer::json(&json!({ "document": STANDARD.encode(document) })),
    })
}

fn described(module: &Description) -> Value {
    let [major, minor, patch] = module.version;
    json!({
        "module_id": module.module_id,
        "version": format!("{major}.{minor}.{patch}"),
        "digest": module.digest,
        "pcrs": module.max_pcrs,
        "locked_pcrs": module.locked_pcrs,
    })
}

fn register(module: &mut dyn Module, index: u16) -> Result<Value, NsmError> {
    let PcrState { locked, value } = module.describe_pcr(index)?;
    Ok(json!({ "index": index, "value": hex::encode(value), "locked": locked }))
}

/// The module gives at most 256 bytes at a time: one turn each, so that nobody waits for all.
async fn random(notary: &Notary, count: usize) -> Result<Answer, AskError> {
    let mut bytes = Vec::with_capacity(count + 256);
    while bytes.len() < count {
        let more = notary.ask(Lane::Workload, |module| module.random()).await.0?;
        if more.is_empty() {
            let reason = "no random bytes".to_owned();
            return Err(NsmError::Malformed { request: "GetRandom", reason }.into());
        }
        bytes.extend(more);
    }
    bytes.truncate(count);
    Ok(Answer::json(&json!({ "random": hex::encode(bytes) })))
}

fn refused(error: &AskError) -> Answer {
    use StatusCode as Status;
    let (status, code) = match error {
        AskError::Busy => (Status::TOO_MANY_REQUESTS, "busy"),
        AskError::Gone | AskError::Absent(_) => (Status::SERVICE_UNAVAILABLE, "no-module"),
        AskError::Nsm(NsmError::Refused { code: NsmErrorCode::ReadOnlyIndex, .. }) => {
            (Status::CONFLICT, "pcr-locked")
        }
        AskError::Nsm(_) => (Status::BAD_GATEWAY, "module"),
    };
    Answer::refusal(status, &chain(error)).code(code)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::nsm::fake::Fake;
    use tokio::time::timeout;

    #[tokio::test]
    async fn many_random_bytes_keep_no_other_lane_waiting_for_more_than_a_turn() {
        let (open, module) = Fake::gated();
        let notary = Notary::start(module).unwrap();
        let random = tokio::spawn({
            let notary = notary.clone();
            async move { answer(Wanted::Random(4096), &notary).await }
        });
        let other = tokio::spawn(async move {
            for _ in 0..2 {
                notary.ask(Lane::Agent, |module| module.describe()).await.0.unwrap();
            }
        });
        // In turns, whoever begins: of eight calls two are the other's.
        (0..8).for_each(|_| open.send(()).unwrap());
        timeout(Duration::from_secs(10), other).await.expect("sixteen calls in one turn").unwrap();
        (0..10).for_each(|_| open.send(()).unwrap());
        assert_eq!(random.await.unwrap().status, StatusCode::OK);
    }
}
