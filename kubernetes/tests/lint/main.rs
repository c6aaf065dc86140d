//! Every rule fires where it should and is silent beside it; the manifests of
//! others give exactly the findings that are listed here.

mod cases;
#[path = "../testdata/mod.rs"]
mod testdata;

use cases::CASES;
use kubernetes::{
    instance::InstanceTypes,
    lint::{self, Facts, Finding, ImageFacts, Level, RULES, Source},
    pages::Arch,
};

fn lint_files(names: &[&str]) -> Option<Vec<Finding>> {
    let read =
        |name: &&str| Some(Source { name: name.to_string(), text: testdata::read(&format!("k8s/{name}"))? });
    let sources: Option<Vec<Source>> = names.iter().map(read).collect();
    Some(lint::lint(&sources?, &Facts::default()))
}

fn ids(findings: &[Finding]) -> Vec<&str> {
    findings.iter().map(|finding| finding.id).collect()
}

/// Id and line of each finding.
fn lines(findings: &[Finding]) -> Vec<(&str, usize)> {
    findings.iter().map(|finding| (finding.id, finding.line)).collect()
}

#[test]
fn the_example_in_the_documentation_of_capa_has_no_error() {
    let Some(findings) =
        lint_files(&["capa/doc_example_nodepool.yaml", "capa/doc_example_pod_resources.yaml"])
    else {
        return;
    };
    assert_eq!(lines(&findings), [("boot-joins-anyway", 46), ("boot-reboot", 46)], "{findings:#?}");
    assert!(findings.iter().all(|finding| finding.level == Level::Advice));
}

#[test]
fn the_test_templates_of_capa_have_no_error_where_they_can_work() {
    let Some(findings) = lint_files(&["capa/e2e_cluster-template-eks-nitro-enclave-managedmachinepool.yaml"])
    else {
        return;
    };
    assert_eq!(ids(&findings), ["boot-joins-anyway", "boot-reboot"], "{findings:#?}");
    // Enclaves are on, but nothing sets pages aside or labels the node.
    let findings = lint_files(&["capa/e2e_nitro-enclave-machinepool.yaml"]).unwrap();
    assert_eq!(ids(&findings), ["label-missing", "boot-no-allocator"], "{findings:#?}");
}

#[test]
fn the_deployments_of_enclavectl_show_what_is_known_of_them() {
    for name in ["hello", "kms"] {
        let Some(findings) =
            lint_files(&["enclavectl/settings.json", &format!("enclavectl/{name}_deployment.yaml")])
        else {
            return;
        };
        let mut seen = ids(&findings);
        seen.sort_unstable();
        let expected = [
            "mem-unused",
            "pod-image-tag",
            "pod-page-volume",
            "pod-seccomp-unset",
            "pod-surge",
            "pod-toleration",
            "pod-toleration",
        ];
        assert_eq!(seen, expected, "{findings:#?}");
    }
}

#[test]
fn the_template_in_the_user_guide_is_refused_for_its_dangling_mount() {
    let Some(findings) = lint_files(&["aws-guide/deployment_template_dangling_mount.yaml"]) else { return };
    let errors: Vec<&Finding> = findings.iter().filter(|finding| finding.level == Level::Error).collect();
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert_eq!(
        (errors[0].id, errors[0].line, errors[0].value.as_str()),
        ("pod-dangling-mount", 29, "hugepage")
    );
    let findings = lint_files(&["aws-guide/deployment_hello.yaml"]).unwrap();
    assert!(findings.iter().all(|finding| finding.level < Level::Error), "{findings:#?}");
}

#[test]
fn the_page_of_karpenter_fills_a_node_with_one_pod() {
    let Some(findings) = lint_files(&[
        "karpenter/ec2nodeclass.yaml",
        "karpenter/nodepool.yaml",
        "karpenter/nodeoverlay.yaml",
        "karpenter/pod.yaml",
        "karpenter/daemonset-patch.json",
        "device-plugin/aws-nitro-enclaves-k8s-ds.yaml",
    ]) else {
        return;
    };
    assert!(findings.iter().all(|finding| finding.level < Level::Error), "{findings:#?}");
    assert!(ids(&findings).contains(&"count-fill"));
    assert!(ids(&findings).contains(&"kp-overlay-alpha"));
    // Without the page's patch the plugin neither runs there nor offers CPUs.
    let unpatched = lint_files(&[
        "karpenter/ec2nodeclass.yaml",
        "karpenter/nodepool.yaml",
        "karpenter/pod.yaml",
        "device-plugin/aws-nitro-enclaves-k8s-ds.yaml",
    ])
    .unwrap();
    for id in ["label-taint", "count-cpus-advertised"] {
        assert!(ids(&unpatched).contains(&id), "{id}: {unpatched:#?}");
    }
}

#[test]
fn manifests_without_enclaves_have_no_finding() {
    for text in [
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {k: v}\n",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec:\n  template:\n    spec:\n      containers:\n      - {name: a, image: a:latest}\n",
        "",
        "---\n",
        "just text\n",
    ] {
        let sources = [Source { name: "a.yaml".into(), text: text.into() }];
        assert_eq!(ids(&lint::lint(&sources, &Facts::default())), [""; 0], "{text}");
    }
}

/// A consistent set that has no finding at all.
const BASE: &str = include_str!("base.yaml");

fn edited(edits: &[(&str, &str)]) -> String {
    let mut text = BASE.to_owned();
    for (from, to) in edits {
        assert!(text.contains(from), "the base has no {from:?}");
        text = text.replacen(from, to, 1);
    }
    text
}

fn facts(id: &str) -> Facts {
    let described = br#"{"InstanceTypes": [
        {"InstanceType": "m5.2xlarge", "NitroEnclavesSupport": "supported"},
        {"InstanceType": "m5.4xlarge", "NitroEnclavesSupport": "supported"},
        {"InstanceType": "t3.xlarge", "NitroEnclavesSupport": "unsupported"}]}"#;
    let wants_types = matches!(id, "type-unsupported" | "type-absent");
    Facts {
        image: id.starts_with("eif").then_some(ImageFacts { bytes: 128 << 20, arch: Arch::X86_64 }),
        instance_types: wants_types.then(|| InstanceTypes::from_json(described).ok()).flatten(),
    }
}

fn findings(id: &str, text: &str) -> Vec<Finding> {
    lint::lint(&[Source { name: "set.yaml".into(), text: text.to_owned() }], &facts(id))
}

#[test]
fn the_base_has_no_finding_at_all() {
    let found = findings("", BASE);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn every_rule_fires_and_is_silent_beside() {
    let mut wrong = Vec::new();
    for case in CASES {
        let fired = findings(case.id, &edited(case.fires));
        match fired.iter().find(|finding| finding.id == case.id) {
            Some(hit) => assert!(!hit.reason.is_empty() && !hit.replacement.is_empty(), "{hit:#?}"),
            None => wrong.push(format!("{} does not fire: {:?}", case.id, lines(&fired))),
        }
        let near = findings(case.id, &edited(case.near));
        if let Some(hit) = near.iter().find(|finding| finding.id == case.id) {
            wrong.push(format!("{} fires beside: {hit:?}", case.id));
        }
        if near.iter().any(|finding| finding.id == "yaml") && case.id != "yaml" {
            wrong.push(format!("{} is not YAML beside", case.id));
        }
        assert_ne!(case.fires, case.near, "{}", case.id);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_rule_has_a_case_and_an_id_of_its_own() {
    let mut seen: Vec<&str> = RULES.iter().map(|rule| rule.id).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), RULES.len());
    for rule in RULES {
        assert!(CASES.iter().any(|case| case.id == rule.id), "{} has no case", rule.id);
    }
}

#[test]
fn fixes_remove_their_findings_and_bring_no_others() {
    let mut fixed_rules = 0;
    for case in CASES {
        let text = edited(case.fires);
        let found = findings(case.id, &text);
        if !found.iter().any(|finding| finding.id == case.id && finding.fix.is_some()) {
            continue;
        }
        fixed_rules += 1;
        let after = findings(case.id, &lint::fix(0, &text, &found));
        assert!(!ids(&after).contains(&case.id), "{}: {after:#?}", case.id);
        let errors = |list: &[Finding]| list.iter().filter(|finding| finding.level == Level::Error).count();
        assert!(errors(&after) < errors(&found).max(1) || errors(&found) == 0, "{}: {after:#?}", case.id);
    }
    assert!(fixed_rules >= 5, "{fixed_rules} rules can fix");
}

#[test]
fn an_allocator_file_is_repaired_line_by_line() {
    for (broken, repaired) in [
        ("---\nmemory_mib: 512\ncpu_count: 2", "---\nmemory_mib: 512\ncpu_count: 2\n"),
        ("memory_mib: 512\ncpu_count: 2\n", "---\nmemory_mib: 512\ncpu_count: 2\n"),
        ("---\r\nmemory_mib: 512\r\ncpu_count: 2\r\n", "---\nmemory_mib: 512\ncpu_count: 2\n"),
        ("---\nmemory_mib: 512\n\ncpu_count: 2\n", "---\nmemory_mib: 512\ncpu_count: 2\n"),
        ("---\nmemory_mib: 512 # half\ncpu_count: 2\n", "---\nmemory_mib: 512\ncpu_count: 2\n"),
    ] {
        let check = |text: &str| {
            lint::lint(&[Source { name: "etc/allocator.yaml".into(), text: text.into() }], &Facts::default())
        };
        let found = check(broken);
        assert!(found.iter().any(|finding| finding.level == Level::Error), "{broken:?}: {found:#?}");
        assert_eq!(lint::fix(0, broken, &found), repaired, "{found:#?}");
        assert!(check(repaired).is_empty(), "{:#?}", check(repaired));
    }
}

#[test]
fn raw_user_data_is_read_as_a_script() {
    let user_data = "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"//\"\n\n--//\n\
        Content-Type: text/x-shellscript; charset=\"us-ascii\"\n\n#!/bin/bash\n\
        amazon-linux-extras install aws-nitro-enclaves-cli -y\n\
        sed -i \"s/memory_mib:.*/memory_mib: 768/\" /etc/nitro_enclaves/allocator.yaml\n\
        systemctl enable nitro-enclaves-allocator.service\n--//--\n";
    let found = lint::lint(&[Source { name: "user-data".into(), text: user_data.into() }], &Facts::default());
    let not_started = found.iter().find(|finding| finding.id == "boot-not-started").unwrap();
    assert_eq!(not_started.line, 10);
    let started = user_data.replace("enable nitro", "enable --now nitro");
    let found = lint::lint(&[Source { name: "user-data".into(), text: started }], &Facts::default());
    assert_eq!(ids(&found), ["boot-joins-anyway", "boot-reboot"]);
}

#[test]
fn sarif_names_every_rule_and_place() {
    let text = edited(&[("aws-nitro-enclaves-k8s-dp: enabled", "aws-nitro-enclaves-k8s-dp: \"true\"")]);
    let found = findings("", &text);
    let sarif = lint::report::sarif(&found, "1");
    let run = &sarif["runs"][0];
    assert_eq!(run["tool"]["driver"]["rules"].as_array().unwrap().len(), RULES.len());
    let result = &run["results"][0];
    assert_eq!(result["ruleId"], "label-value");
    let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
    assert_eq!(run["tool"]["driver"]["rules"][index]["id"], "label-value");
    let region = &result["locations"][0]["physicalLocation"]["region"];
    let line = text.lines().position(|line| line.contains("\"true\"")).unwrap() + 1;
    assert_eq!(region["startLine"], line);
    let change = &result["fixes"][0]["artifactChanges"][0]["replacements"][0];
    let start = usize::try_from(change["deletedRegion"]["byteOffset"].as_u64().unwrap()).unwrap();
    assert_eq!(&text[start..start + 6], "\"true\"");
}

/// Pieces that break YAML, numbers, paths and commands.
const SPLINTERS: &[&str] = &[
    "",
    "\n",
    ":",
    " ",
    "- ",
    "{",
    "}",
    "[",
    "]",
    "'",
    "\"",
    "|\n",
    "#",
    "&a ",
    "*a",
    "<<: *a\n",
    "\t",
    "\0",
    "é",
    "0",
    "-1",
    "99999999999999999999",
    "1e99",
    "Mi",
    "hugepages-",
    "hugepages-0Mi: 1\n",
    "${X}",
    "{{ x }}",
    "<<EOF\n",
    "\\",
    "s/a*b*c*/d/",
    "sed -i ",
    "kind: List\nitems:\n",
    "---\n",
    "\r\n",
    "/nitro_enclaves: x\n",
];

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 1500, failure_persistence: None, ..Default::default() })]

    #[test]
    fn broken_files_end_in_findings_and_never_in_a_panic(
        cuts in proptest::collection::vec((0usize..4000, 0usize..40, 0usize..SPLINTERS.len()), 1..6),
        script in proptest::bool::ANY,
    ) {
        let mut text = BASE.to_owned();
        for (at, length, splinter) in cuts {
            let mut start = at.min(text.len());
            while !text.is_char_boundary(start) {
                start -= 1;
            }
            let mut end = (start + length).min(text.len());
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.replace_range(start..end.max(start), SPLINTERS[splinter]);
        }
        if script {
            text.insert_str(0, "#!/bin/sh\n");
        }
        for name in ["set.yaml", "allocator.yaml"] {
            let found = lint::lint(&[Source { name: name.into(), text: text.clone() }], &facts("eif"));
            for finding in &found {
                proptest::prop_assert!(finding.line >= 1 && finding.line <= text.lines().count() + 1, "{:?}", finding);
                if let Some(fix) = &finding.fix {
                    proptest::prop_assert!(text.get(fix.bytes.clone()).is_some() || fix.bytes.end > text.len(), "{:?}", finding);
                }
            }
            lint::fix(0, &text, &found);
        }
    }
}
