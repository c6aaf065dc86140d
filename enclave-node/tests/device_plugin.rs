//! The device plugin beside kubelets on two other gRPC stacks. No real kubelet
//! takes part: none can be had from packages.

#![allow(clippy::unwrap_used, reason = "a failure here is the test's")]

mod stand_in;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;
use stand_in::{CPUS, ENCLAVES, Kubelet, Manners, Node, Plugin, Stack, all, ids, within};

/// A node with a plugin and a kubelet that know each other.
fn acquainted(stack: Stack) -> (Node, Kubelet, Plugin) {
    let node = Node::new();
    let kubelet = Kubelet::start(stack, &node);
    let plugin = Plugin::start(&node);
    kubelet.knows_both();
    (node, kubelet, plugin)
}

fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address.trim()).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

#[test]
fn both_resources_are_offered_with_ids_health_and_numa_node() {
    for stack in Stack::available() {
        let node = Node::new();
        let kubelet = Kubelet::start(stack, &node);
        let _plugin = Plugin::start(&node);
        let registered = kubelet.event("registered", |event| event["resource"] == ENCLAVES);
        assert_eq!(registered["endpoint"], "nitro_enclaves.sock");
        assert_eq!((&registered["preferred"], &registered["pre_start"]), (&json!(true), &json!(false)));
        let slots = kubelet.devices(ENCLAVES, |_| true);
        assert_eq!(
            ids(&slots),
            ["nitro_enclaves_0", "nitro_enclaves_1", "nitro_enclaves_2", "nitro_enclaves_3"]
        );
        assert!(all(&slots, "Healthy"));

        let kubelet = Kubelet::start(stack, &node);
        let cpus = kubelet.devices(CPUS, |_| true);
        assert_eq!(ids(&cpus), ["2", "3", "4", "5", "6", "7", "8", "9"]);
        assert!(cpus.iter().all(|cpu| cpu["nodes"] == json!([1])));
        for socket in ["nitro_enclaves.sock", "nitro_enclaves_cpus.sock"] {
            let mode = fs::metadata(node.plugins().join(socket)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "only root may connect");
        }
    }
}

#[test]
fn a_container_gets_the_device_its_slot_and_its_cpus() {
    for stack in Stack::available() {
        let (_node, mut kubelet, _plugin) = acquainted(stack);
        let answer = kubelet.order(&format!("allocate {ENCLAVES} nitro_enclaves_2"), "allocated").unwrap();
        let device = ["/dev/nitro_enclaves", "/dev/nitro_enclaves", "rw"];
        let slot = json!({"ENCLAVE_SHIM_SLOT": "2"});
        assert_eq!(answer["containers"], json!([{"envs": slot, "devices": [device], "rest": 0}]));
        // Two containers of one pod, in order; kubelet's ids are in no order.
        let answer = kubelet.order(&format!("allocate {CPUS} 9,8 5,2,4,3"), "allocated").unwrap();
        let cpus = |count, ids| json!({"NITRO_ENCLAVES_CPUS": count, "ENCLAVE_SHIM_CPU_IDS": ids});
        assert_eq!(answer["containers"][0]["envs"], cpus("2", "8,9"));
        assert_eq!(answer["containers"][1]["envs"], cpus("4", "2,3,4,5"));
        assert_eq!(answer["containers"][1]["devices"], json!([]));
    }
}

#[test]
fn whole_cores_are_preferred() {
    for stack in Stack::available() {
        let (_node, mut kubelet, _plugin) = acquainted(stack);
        let mut prefer = |order: &str| {
            kubelet.order(&format!("prefer {CPUS} {order}"), "preferred").unwrap()["ids"].clone()
        };
        assert_eq!(prefer("2 3,4,5,7 -"), json!(["4", "5"]));
        assert_eq!(prefer("4 2,3,4,5,6,7,8,9 6"), json!(["2", "3", "6", "7"]));
        assert_eq!(prefer("-1 2,3 -"), json!([]));
    }
}

#[test]
fn what_is_not_offered_is_refused() {
    for stack in Stack::available() {
        let (node, mut kubelet, _plugin) = acquainted(stack);
        let mut code = |order: &str| kubelet.order(order, "allocated").unwrap_err();
        assert_eq!(code(&format!("allocate {CPUS} 2,42")), "INVALID_ARGUMENT");
        assert_eq!(code(&format!("allocate {CPUS} 2,2")), "INVALID_ARGUMENT");
        assert_eq!(code(&format!("allocate {ENCLAVES} 2")), "INVALID_ARGUMENT");
        assert_eq!(code(&format!("huge {CPUS} 10000")), "OUT_OF_RANGE");
        fs::remove_file(node.path("dev/nitro_enclaves")).unwrap();
        kubelet.devices(ENCLAVES, |devices| all(devices, "Unhealthy"));
        let refused = kubelet.order(&format!("allocate {ENCLAVES} nitro_enclaves_0"), "allocated");
        assert_eq!(refused.unwrap_err(), "FAILED_PRECONDITION");
    }
}

#[test]
fn kubelet_may_restart_any_number_of_times() {
    for stack in Stack::available() {
        let (node, mut kubelet, _plugin) = acquainted(stack);
        for _ in 0..3 {
            drop(kubelet); // as by SIGKILL: its socket stays until its successor empties the directory
            kubelet = Kubelet::start(stack, &node);
            kubelet.knows_both();
        }
        kubelet.order(&format!("allocate {CPUS} 2,3"), "allocated").unwrap();
    }
}

#[test]
fn a_kubelet_that_leaves_our_sockets_is_noticed_by_its_own() {
    for stack in Stack::available() {
        let (node, kubelet, _plugin) = acquainted(stack);
        drop(kubelet);
        let manners = Manners { empties: false, ..Manners::default() };
        let begin = Instant::now();
        Kubelet::start_with(stack, &node, &manners).knows_both();
        // Sooner than by hearing nothing for 10 s.
        assert!(begin.elapsed() < Duration::from_secs(8), "noticed after {:?}", begin.elapsed());
    }
}

#[test]
fn a_socket_that_somebody_removes_is_made_again() {
    for stack in Stack::available() {
        let (node, kubelet, _plugin) = acquainted(stack);
        fs::remove_file(node.plugins().join("nitro_enclaves_cpus.sock")).unwrap();
        assert_eq!(kubelet.event("ended", |event| event["resource"] == CPUS)["code"], "OK");
        kubelet.devices(CPUS, |devices| all(devices, "Healthy"));
    }
}

#[test]
fn kubelet_may_start_after_the_plugin() {
    for stack in Stack::available() {
        let node = Node::new();
        let plugin = Plugin::start(&node);
        plugin.logged("not registered");
        Kubelet::start(stack, &node).knows_both();
    }
}

#[test]
fn a_refused_registration_is_tried_again() {
    for stack in Stack::available() {
        let node = Node::new();
        let manners = Manners { refusals: 3, ..Manners::default() };
        let kubelet = Kubelet::start_with(stack, &node, &manners);
        let _plugin = Plugin::start(&node);
        kubelet.event("refused", |_| true);
        kubelet.knows_both();
    }
}

#[test]
fn a_kubelet_that_forgets_the_plugin_is_told_again() {
    for stack in Stack::available() {
        let (_node, mut kubelet, _plugin) = acquainted(stack);
        kubelet.tell(&format!("hangup {CPUS}"));
        kubelet.event("registered", |event| event["resource"] == CPUS);
        kubelet.devices(CPUS, |devices| all(devices, "Healthy"));
    }
}

#[test]
fn a_stopped_plugin_ends_its_streams_and_removes_its_sockets() {
    for stack in Stack::available() {
        let (node, kubelet, mut plugin) = acquainted(stack);
        let begin = Instant::now();
        plugin.signal(Signal::SIGTERM);
        for _ in [ENCLAVES, CPUS] {
            assert_eq!(kubelet.event("ended", |_| true)["code"], "OK");
        }
        assert!(plugin.wait().success());
        assert!(begin.elapsed() < Duration::from_secs(5), "stopped after {:?}", begin.elapsed());
        let left: Vec<_> =
            fs::read_dir(node.plugins()).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert_eq!(left, ["kubelet.sock"]);
    }
}

#[test]
fn a_killed_plugin_is_replaced_by_the_next_one() {
    for stack in Stack::available() {
        let (node, mut kubelet, mut plugin) = acquainted(stack);
        plugin.signal(Signal::SIGKILL);
        plugin.wait();
        assert!(node.plugins().join("nitro_enclaves.sock").exists(), "nobody removed it");
        let _next = Plugin::start(&node);
        kubelet.knows_both();
        kubelet.order(&format!("allocate {ENCLAVES} nitro_enclaves_0"), "allocated").unwrap();
    }
}

#[test]
fn of_two_plugins_the_newer_serves_and_the_older_takes_over_at_its_end() {
    for stack in Stack::available() {
        for end in [Signal::SIGTERM, Signal::SIGKILL] {
            let (node, mut kubelet, older) = acquainted(stack);
            let mut newer = Plugin::start(&node);
            for _ in [ENCLAVES, CPUS] {
                older.logged("another plugin has taken the socket");
            }
            kubelet.knows_both();
            let address = newer.logged("http bound address=");
            kubelet.order(&format!("many {CPUS} 200 2,3"), "done").unwrap();
            let counted = "enclave_node_allocations_total{resource=\"cpus\",outcome=\"ok\"} 200";
            assert!(get(&address, "/metrics").1.contains(counted), "the newer one answers");
            newer.signal(end);
            newer.wait();
            if end == Signal::SIGKILL {
                // Nothing tells of this death; the next change in the directory does, or half a minute.
                node.write("plugins/unrelated", "");
            }
            kubelet.knows_both();
        }
    }
}

#[test]
fn the_devices_follow_what_happens_on_the_node() {
    for stack in Stack::available() {
        let (node, kubelet, _plugin) = acquainted(stack);
        // Whatever happens, both resources change: nothing told of it is left for the next step.
        fs::remove_file(node.path("dev/nitro_enclaves")).unwrap();
        assert_eq!(kubelet.both(|devices| all(devices, "Unhealthy")).map(|list| list.len()), [4, 8]);
        node.write("dev/nitro_enclaves", "");
        kubelet.both(|devices| all(devices, "Healthy"));
        // The allocator runs again: it empties the pool, then fills it.
        node.pool("");
        assert_eq!(kubelet.both(|devices| all(devices, "Unhealthy")).map(|list| list.len()), [4, 8]);
        node.pool("4-7");
        let [_, cpus] = kubelet.both(|devices| all(devices, "Healthy"));
        assert_eq!(ids(&cpus), ["4", "5", "6", "7"]);
        // Less memory, fewer enclaves: 96 MiB are room for one.
        node.pages(48);
        kubelet.devices(ENCLAVES, |devices| ids(devices) == ["nitro_enclaves_0"]);
    }
}

#[test]
fn a_node_without_enclaves_offers_none() {
    for stack in Stack::available() {
        let node = Node::new();
        fs::remove_dir_all(node.path("sys")).unwrap();
        fs::remove_dir_all(node.path("dev")).unwrap();
        let kubelet = Kubelet::start(stack, &node);
        let _plugin = Plugin::start_with(&node, &["--recheck", "1"]);
        assert_eq!(kubelet.devices(ENCLAVES, |devices| all(devices, "Unhealthy")).len(), 4);
        // The module is loaded and the allocator runs, unseen by inotify.
        let ready = Node::new();
        for part in ["sys", "dev"] {
            fs::rename(ready.path(part), node.path(part)).unwrap();
        }
        kubelet.devices(ENCLAVES, |devices| all(devices, "Healthy"));
    }
}

#[test]
fn a_thousand_containers_are_served_and_counted() {
    for stack in Stack::available() {
        let node = Node::new();
        let mut kubelet = Kubelet::start(stack, &node);
        let plugin = Plugin::start(&node);
        let address = plugin.logged("http bound address=");
        kubelet.knows_both();
        let before = plugin.memory().0;
        let done = kubelet.order(&format!("many {CPUS} 1000 2,3,4,5"), "done").unwrap();
        let (after, most) = plugin.memory();
        println!(
            "{stack:?}: 1000 Allocate in {} s, memory {before} -> {after} KiB, at most {most} KiB",
            done["seconds"]
        );
        let (status, metrics) = get(&address, "/metrics");
        assert_eq!(status, 200);
        assert!(
            metrics.contains("enclave_node_allocations_total{resource=\"cpus\",outcome=\"ok\"} 1000"),
            "{metrics}"
        );
        assert!(most < 15 << 10, "AWS's DaemonSet grants 15 MiB, this took {most} KiB");
    }
}

#[test]
fn readiness_is_that_kubelet_listens() {
    for stack in Stack::available() {
        let node = Node::new();
        let plugin = Plugin::start(&node);
        let address = plugin.logged("http bound address=");
        assert_eq!(get(&address, "/healthz").0, 200);
        assert_eq!(get(&address, "/readyz").0, 503);
        let kubelet = Kubelet::start(stack, &node);
        kubelet.knows_both();
        assert_eq!(get(&address, "/readyz").0, 200);
        drop(kubelet);
        within(Duration::from_secs(10), "a dead kubelet is noticed", || get(&address, "/readyz").0 == 503);
    }
}

/// Kubelets before 1.26 send the socket's path as `:authority`, which is none;
/// the HTTP/2 library refuses it. When this fails the floor in the docs is gone.
#[test]
fn a_kubelet_older_than_1_26_is_refused_and_does_no_harm() {
    for stack in Stack::available() {
        let node = Node::new();
        let manners = Manners { authority: "path", ..Manners::default() };
        let old = Kubelet::start_with(stack, &node, &manners);
        let plugin = Plugin::start(&node);
        old.event("unreachable", |_| true);
        plugin.logged("not registered");
        drop(old);
        Kubelet::start(stack, &node).knows_both();
    }
}
