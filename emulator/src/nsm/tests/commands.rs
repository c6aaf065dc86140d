//! Commands through [`Module::answer`], their limits, and the faults.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use minicbor::Encoder;

use super::reading::{Document, Item};
use super::{Bench, MODULE};
use crate::nsm::{Device, ErrorCode, FIELD_MAX, Faults, Module, RANDOM_LEN, REQUEST_MAX, RESPONSE_MAX};

pub(super) fn text(name: &str) -> Vec<u8> {
    let mut out = Encoder::new(Vec::new());
    out.str(name).unwrap();
    out.into_writer()
}

fn numbered(name: &str, field: &str, number: u16) -> Vec<u8> {
    let mut out = Encoder::new(Vec::new());
    out.map(1).unwrap().str(name).unwrap().map(1).unwrap().str(field).unwrap().u16(number).unwrap();
    out.into_writer()
}

fn extend(index: u16, data: &[u8]) -> Vec<u8> {
    let mut out = Encoder::new(Vec::new());
    out.map(1).unwrap().str("ExtendPCR").unwrap().map(2).unwrap();
    out.str("index").unwrap().u16(index).unwrap().str("data").unwrap().bytes(data).unwrap();
    out.into_writer()
}

pub(super) fn attest(user_data: Option<&[u8]>, nonce: Option<&[u8]>, public_key: Option<&[u8]>) -> Vec<u8> {
    let mut out = Encoder::new(Vec::new());
    out.map(1).unwrap().str("Attestation").unwrap().map(3).unwrap();
    for (name, value) in [("user_data", user_data), ("nonce", nonce), ("public_key", public_key)] {
        out.str(name).unwrap();
        match value {
            Some(value) => out.bytes(value).unwrap(),
            None => out.null().unwrap(),
        };
    }
    out.into_writer()
}

fn ask(module: &mut Module, request: &[u8]) -> Item {
    Item::read(&module.answer(request))
}

fn assert_refused(module: &mut Module, request: &[u8], code: ErrorCode) {
    assert_eq!(ask(module, request).field("Error").text(), code.as_str(), "{}", hex::encode(request));
}

#[test]
fn the_module_describes_itself() {
    let answer = ask(&mut Bench::new().module(), &text("DescribeNSM"));
    let described = answer.field("DescribeNSM");
    let Item::Map(fields) = described else { panic!() };
    let names: Vec<_> = fields.iter().map(|(name, _)| name.text()).collect();
    assert_eq!(
        names,
        ["version_major", "version_minor", "version_patch", "module_id", "max_pcrs", "locked_pcrs", "digest"]
    );
    assert_eq!(described.field("version_major").number(), 1);
    assert_eq!(described.field("module_id").text(), MODULE);
    assert_eq!(described.field("max_pcrs").number(), 32);
    assert_eq!(described.field("digest").text(), "SHA384");
    let locked: Vec<u64> = described.field("locked_pcrs").list().iter().map(Item::number).collect();
    assert_eq!(locked, (0..16).collect::<Vec<_>>());
}

/// The run of checks that AWS's own `nsm-check` makes against hardware.
#[test]
fn a_workload_can_extend_and_lock_its_registers_and_nothing_else() {
    let bench = Bench::new();
    let module = &mut bench.module();
    for index in 0..16 {
        assert_refused(module, &numbered("LockPCR", "index", index), ErrorCode::ReadOnlyIndex);
        assert_refused(module, &extend(index, &[1]), ErrorCode::ReadOnlyIndex);
    }
    for index in 16..32 {
        let first = ask(module, &extend(index, &[1, 2, 3]));
        let second = ask(module, &extend(index, &[1, 2, 3]));
        assert_ne!(first, second);
        assert_eq!(ask(module, &numbered("LockPCR", "index", index)), Item::Text("LockPCR".into()));
        assert_refused(module, &extend(index, &[1]), ErrorCode::ReadOnlyIndex);
        let answer = ask(module, &numbered("DescribePCR", "index", index));
        assert_eq!(answer.field("DescribePCR").field("lock"), &Item::Bool(true));
        assert_eq!(answer.field("DescribePCR").field("data"), second.field("ExtendPCR").field("data"));
    }
    assert_eq!(ask(module, &numbered("LockPCRs", "range", 32)), Item::Text("LockPCRs".into()));
    assert_refused(module, &numbered("LockPCRs", "range", 33), ErrorCode::InvalidIndex);
    assert_refused(module, &numbered("DescribePCR", "index", 32), ErrorCode::InvalidIndex);
    assert_refused(module, &numbered("LockPCR", "index", 300), ErrorCode::InvalidIndex);
}

#[test]
fn random_bytes_are_256_and_differ() {
    let bench = Bench::new();
    let mut module = bench.module();
    let mut draw = || {
        let answer = module.answer(&text("GetRandom"));
        // The kernel reads the head at a fixed place: 59 01 00 (drivers/misc/nsm.c).
        assert_eq!(hex::encode(&answer[..21]), "a16947657452616e646f6da16672616e646f6d5901");
        Item::read(&answer).field("GetRandom").field("random").bytes().to_vec()
    };
    let (one, other) = (draw(), draw());
    assert_eq!((one.len(), other.len()), (RANDOM_LEN, RANDOM_LEN));
    assert_ne!(one, other);
    let distinct = one.iter().collect::<std::collections::BTreeSet<_>>().len();
    assert!(distinct > 64, "{distinct} different values in {RANDOM_LEN} random bytes");
}

#[test]
fn each_claim_may_have_1024_bytes_and_no_more() {
    let bench = Bench::new();
    let module = &mut bench.module();
    let (full, over) = (vec![0x80; FIELD_MAX], vec![0x80; FIELD_MAX + 1]);
    assert_eq!(ask(module, &numbered("LockPCRs", "range", 32)), Item::Text("LockPCRs".into()));

    let request = attest(Some(&full), Some(&full), Some(&full));
    assert!(request.len() <= REQUEST_MAX);
    let largest = module.answer(&request);
    assert!(largest.len() <= RESPONSE_MAX, "{}", largest.len());
    let document = Document::from_answer(&largest);
    for claim in ["user_data", "nonce", "public_key"] {
        assert_eq!(document.payload.field(claim).bytes(), full);
    }
    assert_eq!(document.pcrs().len(), 32);

    assert_refused(module, &attest(Some(&over), None, None), ErrorCode::InputTooLarge);
    assert_refused(module, &attest(None, Some(&over), None), ErrorCode::InputTooLarge);
    assert_refused(module, &attest(None, None, Some(&over)), ErrorCode::InputTooLarge);
}

#[test]
fn requests_have_4096_bytes_at_most() {
    let bench = Bench::new();
    let module = &mut bench.module();
    let head = extend(16, &[]).len() + 2; // a longer string's head takes two octets more
    let largest = extend(16, &vec![0; REQUEST_MAX - head]);
    assert_eq!(largest.len(), REQUEST_MAX);
    assert_eq!(ask(module, &largest).field("ExtendPCR").field("data").bytes().len(), 48);
    assert_refused(module, &extend(16, &vec![0; REQUEST_MAX - head + 1]), ErrorCode::InputTooLarge);
    assert_refused(module, &[], ErrorCode::InvalidArgument);
    assert_refused(module, &text("Nonsense"), ErrorCode::InvalidOperation);
}

/// Every prefix and every change of one octet in each kind of request.
#[test]
fn damaged_requests_get_one_well_formed_answer_each() {
    let bench = Bench::new();
    let module = &mut bench.module();
    let requests = [
        text("GetRandom"),
        text("DescribeNSM"),
        numbered("DescribePCR", "index", 0),
        numbered("LockPCR", "index", 20),
        numbered("LockPCRs", "range", 24),
        extend(16, b"data"),
        attest(Some(b"a"), None, Some(b"b")),
    ];
    let mut refused = 0;
    for request in &requests {
        for length in 0..request.len() {
            assert_refused(module, &request[..length], ErrorCode::InvalidArgument);
        }
        for (place, value) in (0..request.len()).flat_map(|place| (0..=255).map(move |value| (place, value)))
        {
            let mut changed = request.clone();
            changed[place] = value;
            match ask(module, &changed) {
                Item::Map(answer) => refused += usize::from(answer[0].0 == Item::Text("Error".into())),
                answer => assert!(matches!(answer.text(), "LockPCR" | "LockPCRs")),
            }
        }
    }
    assert!(refused > 10_000, "{refused}");
}

#[test]
fn an_error_fault_answers_every_request_and_changes_nothing() {
    let bench = Bench::new();
    let mut module = bench.module();
    let before = module.answer(&numbered("DescribePCR", "index", 16));
    module.set_faults(Faults { error: Some(ErrorCode::InternalError), ..Faults::default() });
    for request in [text("GetRandom"), text("DescribeNSM"), extend(16, b"x"), attest(None, None, None)] {
        assert_refused(&mut module, &request, ErrorCode::InternalError);
    }
    module.set_faults(Faults::default());
    assert_eq!(module.answer(&numbered("DescribePCR", "index", 16)), before);
}

#[test]
fn a_truncation_fault_cuts_the_answer() {
    let bench = Bench::new();
    let mut module = bench.module();
    let whole = module.answer(&text("DescribeNSM"));
    module.set_faults(Faults { truncate_to: Some(10), ..Faults::default() });
    assert_eq!(module.answer(&text("DescribeNSM")), whole[..10]);
    module.set_faults(Faults { truncate_to: Some(usize::MAX), ..Faults::default() });
    assert_eq!(module.answer(&text("DescribeNSM")), whole);
}

#[test]
fn a_delayed_device_serves_one_request_at_a_time() {
    const DELAY: Duration = Duration::from_millis(20);
    const CALLERS: u32 = 4;
    let device = Arc::new(Device::new(Bench::new().module()));
    device.set_faults(Faults { delay: DELAY, ..Faults::default() });
    let start = Instant::now();
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let device = Arc::clone(&device);
            thread::spawn(move || device.serve(&text("GetRandom")))
        })
        .collect();
    for caller in callers {
        assert_eq!(Item::read(&caller.join().unwrap()).field("GetRandom").field("random").bytes().len(), 256);
    }
    assert!(start.elapsed() >= DELAY * CALLERS, "{:?}", start.elapsed());
}
